//! Tests the screens of examples/adventure_works: its program runs in one process, and as three processes over RabbitMQ.

use std::{collections::BTreeMap, process::Stdio};

use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
};
use uuid::Uuid;

use crate::{
    flow::soon,
    saga::adventure_works::{self, services::Part},
    support::{TestDatabase, uri},
};

const PART: &str = "OUTBOX_TEST_SHOP_PART";

/// The program that the tests start, which is this test binary with only this test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "serves until it is terminated, as the other tests have it"]
async fn serve_until_terminated() {
    let part: Option<Part> = std::env::var(PART).ok().map(|part| part.parse().unwrap());
    adventure_works::run(part).await.unwrap();
}

/// A process of the shop. It is killed if the test fails.
struct Program {
    child: Child,
    /// The address of the screens, unless this part has none.
    address: String,
    /// A program can't print without its reader.
    _output: Lines<BufReader<ChildStdout>>,
}

impl Program {
    async fn start(database: &str, part: Option<&'static str>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["shop_screens::serve_until_terminated", "--exact", "--ignored", "--nocapture"])
            .env("LISTEN", "127.0.0.1:0")
            .env("ADVENTURE_WORKS_DATABASE", database)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        if let Some(part) = part {
            command.env(PART, part);
        }
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let started = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some((_, address)) = line.split_once("open http://") {
                    return address.to_owned();
                }
                if line.trim() == "running" {
                    return String::new();
                }
            }
            panic!("the shop ended before it had started");
        };
        let address = soon("the shop to start", started).await;
        Self { child, address, _output: lines }
    }

    async fn stop(mut self) {
        let pid = self.child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let ended = soon("the shop to stop", self.child.wait()).await.unwrap();
        assert!(ended.success(), "{ended}");
    }
}

/// A browser without scripts, which keeps its cookies and follows no redirect.
struct Browser {
    address: String,
    cookies: BTreeMap<String, String>,
}

struct Page {
    status: u16,
    location: String,
    body: String,
}

impl Browser {
    fn new(address: &str) -> Self {
        Self { address: address.into(), cookies: BTreeMap::new() }
    }

    async fn get(&mut self, path: &str) -> Page {
        self.ask("GET", path, "").await
    }

    async fn post(&mut self, path: &str, form: &str) -> Page {
        self.ask("POST", path, form).await
    }

    async fn ask(&mut self, method: &str, path: &str, form: &str) -> Page {
        let cookies: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncookie: {}\r\nconnection: close\r\n\
             content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{form}",
            self.address,
            cookies.join("; "),
            form.len(),
        );
        let exchange = async {
            let mut stream = TcpStream::connect(&self.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer = soon("the answer", exchange).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let header = |name: &str| {
            let lines = head.lines().filter_map(|line| line.split_once(": "));
            lines.filter(|(found, _)| *found == name).map(|(_, value)| value.to_owned()).next_back()
        };
        if let Some((name, value)) = header("set-cookie").as_deref().and_then(|set| set.split_once('=')) {
            self.cookies.insert(name.into(), value.split(';').next().unwrap().into());
        }
        Page {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            location: header("location").unwrap_or_default(),
            body: body.to_owned(),
        }
    }

    /// Puts products into the cart and checks out. Returns the path of the order.
    async fn order(&mut self, products: &[(&str, u32)]) -> String {
        for (product, quantity) in products {
            let added = self.post("/cart", &format!("product={product}&quantity={quantity}")).await;
            assert_eq!((added.status, added.location.as_str()), (303, "/cart"));
        }
        let cart = self.get("/cart").await;
        let (_, rest) = cart.body.split_once(r#"name="order" value=""#).unwrap();
        let id = rest.split('"').next().unwrap();
        Uuid::parse_str(id).unwrap();
        let form = format!("order={id}&customer=Ada+%3Cscript%3E");
        let placed = self.post("/orders", &form).await;
        assert_eq!((placed.status, placed.location.clone()), (303, format!("/orders/{id}")));
        let repeated = self.post("/orders", &form).await;
        assert_eq!(repeated.location, placed.location, "a form that is sent twice makes one order");
        placed.location
    }

    /// Waits until the page of an order contains a text.
    async fn wait_for(&mut self, path: &str, text: &str) -> String {
        let waiting = async {
            loop {
                let page = self.get(path).await;
                if page.body.contains(text) {
                    return page.body;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        soon(text, waiting).await
    }
}

/// Orders are completed, rejected and cancelled on the screens.
async fn use_the_screens(address: &str) {
    let mut browser = Browser::new(address);
    let products = browser.get("/").await;
    assert!(products.status == 200 && products.body.contains("Road-250"));
    assert_eq!(browser.get("/orders/none").await.status, 400);
    assert_eq!(browser.get(&format!("/orders/{}", Uuid::now_v7())).await.status, 404);

    let order = browser.order(&[("road-250", 1), ("water-bottle", 2)]).await;
    let page = browser.wait_for(&order, ">confirmed<").await;
    assert!(page.contains("Ada &lt;script&gt;") && !page.contains("Ada <script>"), "{page}");
    assert!(page.contains(r#"id="approve""#), "{page}");
    let approved = browser.post(&format!("{order}/approve"), "").await;
    assert_eq!((approved.status, approved.location.as_str()), (303, order.as_str()));
    let page = browser.wait_for(&order, "It has ended").await;
    let page = if page.contains("Completed") { page } else { browser.wait_for(&order, "Completed").await };
    assert!(!page.contains(r#"id="approve""#), "{page}");
    assert_eq!(browser.post(&format!("{order}/reject"), "").await.status, 409);

    let id = order.trim_start_matches("/orders/");
    browser.post("/cart", "product=sport-100&quantity=1").await;
    let stale = browser.post("/orders", &format!("order={id}&customer=Ada")).await;
    assert_eq!((stale.status, stale.location.as_str()), (303, "/cart"), "its order has other items");
    let cart = browser.get("/cart").await.body;
    assert!(cart.contains(r#"value="sport-100""#) && !cart.contains(id), "{cart}");
    browser.post("/cart/remove", "product=sport-100").await;

    let denied = browser.order(&[("last-cap", 2)]).await;
    browser.wait_for(&denied, ">Cancelled<").await;
    let rejected = browser.order(&[("sport-100", 3)]).await;
    browser.wait_for(&rejected, ">confirmed<").await;
    assert_eq!(browser.post(&format!("{rejected}/reject"), "").await.status, 303);
    browser.wait_for(&rejected, ">returned<").await;

    let all = browser.get("/orders").await.body;
    for path in [&order, &denied, &rejected] {
        assert!(all.contains(path.as_str()), "{all}");
    }
    browser.wait_for("/", "40 in stock").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_screens_work_in_one_process() {
    let test = TestDatabase::create().await;
    let shop = Program::start(test.database.name(), None).await;
    use_the_screens(&shop.address).await;
    shop.stop().await;
    test.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_screens_work_over_rabbitmq() {
    let test = TestDatabase::create().await;
    let name = test.database.name().to_owned();
    let stocks = Program::start(&name, Some("stocks")).await;
    let fulfillments = Program::start(&name, Some("fulfillments")).await;
    let orders = Program::start(&name, Some("orders")).await;
    use_the_screens(&orders.address).await;
    for program in [orders, fulfillments, stocks] {
        program.stop().await;
    }

    let broker = uri("OUTBOX_RABBITMQ_URI");
    let connection = lapin::Connection::connect(&broker, Default::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut queues = vec![format!("{name}.process-document-messages")];
    for part in ["orders", "fulfillments", "stocks"] {
        queues.extend(["", ".dead", ".delayed"].map(|suffix| format!("{name}.{part}{suffix}")));
    }
    for queue in queues {
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    }
    let exchange = format!("{name}.messages");
    channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
    test.drop().await;
}
