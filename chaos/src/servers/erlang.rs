//! A hidden Erlang node: it connects to the RabbitMQ nodes without being a member of their cluster, and sends them requests that
//! AMQP does not offer. The node runs for the whole session, because each start of `rabbitmqctl`, which offers the same requests,
//! would take seconds of a storm.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout},
    sync::Mutex,
    time::timeout,
};

use crate::process::bound_to_us;

/// How long the evaluation of an expression may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// The Erlang program of the node. Each line of input has a number and an expression. The program evaluates the expression, and
/// prints a line with the same number and the value.
const LOOP: &str = r#"
    Loop = fun(Loop) ->
        case io:get_line("") of
            Line when is_list(Line) ->
                spawn(fun() ->
                    {Number, Text} = string:to_integer(Line),
                    Answer = try
                        {ok, Tokens, _} = erl_scan:string(Text),
                        {ok, Expressions} = erl_parse:parse_exprs(Tokens),
                        {value, Value, _} = erl_eval:exprs(Expressions, []),
                        Value
                    catch Class:Reason -> {failed, Class, Reason} end,
                    io:format("~b ~0p~n", [Number, Answer])
                end),
                Loop(Loop);
            _ -> halt()
        end
    end,
    io:format("ready~n"),
    Loop(Loop).
"#;

pub(super) struct Erlang {
    talk: Mutex<Talk>,
    _child: Child,
}

struct Talk {
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    asked: u64,
}

impl Erlang {
    /// Starts a hidden node that shares the cookie of the cluster, so that it can reach the RabbitMQ nodes.
    pub(super) async fn start(home: &Path, epmd_port: u16) -> Result<Self> {
        let mut command = bound_to_us(Path::new("/usr/bin/erl"));
        command
            .args(["-noshell", "-hidden", "-sname"])
            .arg(format!("chaos-{}@localhost", std::process::id()))
            .args(["-kernel", "inet_dist_use_interface", "{127,0,0,1}", "-eval", LOOP])
            .env("HOME", home)
            .env("ERL_EPMD_PORT", epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().context("erl can't be started")?;
        let input = child.stdin.take().context("erl has an input")?;
        let output = child.stdout.take().context("erl has an output")?;
        let mut lines = BufReader::new(output).lines();
        timeout(PATIENCE, lines.next_line()).await.context("erl isn't ready in time")??;
        Ok(Self { talk: Mutex::new(Talk { input, lines, asked: 0 }), _child: child })
    }

    /// Evaluates an expression, such as `1 + 1`, and returns its value.
    pub(super) async fn evaluate(&self, expression: &str) -> Result<String> {
        let mut talk = self.talk.lock().await;
        talk.asked += 1;
        let number = format!("{} ", talk.asked);
        let words: Vec<_> = expression.split_whitespace().collect();
        talk.input.write_all(format!("{number}{}.\n", words.join(" ")).as_bytes()).await?;
        let answer =
            timeout(PATIENCE, talk.answer(&number)).await.context("erl doesn't answer in time")??;
        if answer.starts_with("{failed") {
            bail!("{expression}: {answer}");
        }
        Ok(answer)
    }
}

impl Talk {
    /// Returns the answer with this number. Answers to earlier expressions, whose evaluation took too long, are skipped.
    async fn answer(&mut self, number: &str) -> Result<String> {
        loop {
            let line = self.lines.next_line().await?.context("erl has ended")?;
            if let Some(answer) = line.strip_prefix(number) {
                return Ok(answer.to_owned());
            }
        }
    }
}
