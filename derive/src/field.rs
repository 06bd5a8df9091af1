//! A field of an aggregate: how serde treats the field, and which problems this treatment causes.

use proc_macro2::Span;
use syn::{Ident, Type, ext::IdentExt};

use crate::{
    options::{Key, Options, Problems, Takes},
    rename::RenameRule,
    serde_attributes::{Directions, SerdeAttributes},
};

/// The field by which MongoDB identifies a document.
pub(crate) const ID: &str = "_id";
/// The stored fields that belong to the library.
const RESERVED: [&str; 2] = ["etag", "outbox"];

const KEYS: [Key; 2] =
    [Key { name: "outbox", takes: Takes::Nothing }, Key { name: "renamed", takes: Takes::Nothing }];

/// The role of a field for the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The field has the stored name `_id`, even if serde skips the field.
    Id,
    Outbox,
    Inbox,
    /// The field's own fields are stored next to those of the struct.
    Flattened,
    /// The field is not stored.
    Skipped,
    /// The field is stored and has no other role.
    Stored,
}

/// A field, as serde stores it.
pub(crate) struct Field<'a> {
    pub(crate) ident: &'a Ident,
    pub(crate) ty: &'a Type,
    pub(crate) role: Role,
    pub(crate) names: Directions<String>,
    serde: SerdeAttributes,
    options: Options,
}

impl<'a> Field<'a> {
    /// Reads a field of a struct with these attributes.
    pub(crate) fn read(
        field: &'a syn::Field,
        ident: &'a Ident,
        container: &SerdeAttributes,
        problems: &mut Problems,
    ) -> Self {
        let serde = SerdeAttributes::read(&field.attrs);
        let options = problems.or_default(Options::read(&field.attrs, "aggregate", &KEYS));
        let names = names(ident, &serde, container);
        let role = role(&field.ty, &serde, &options, &names);
        Self { ident, ty: &field.ty, role, names, serde, options }
    }

    pub(crate) fn span(&self) -> Span {
        self.ident.span()
    }

    /// Whether a save writes the field under its name.
    pub(crate) fn is_stored(&self) -> bool {
        match self.role {
            Role::Id | Role::Inbox | Role::Stored => !self.serde.has("skip_serializing"),
            Role::Outbox | Role::Flattened | Role::Skipped => false,
        }
    }

    /// Adds the problems that the field would cause when it is saved or loaded.
    pub(crate) fn check(&self, container: &SerdeAttributes, problems: &mut Problems) {
        match self.role {
            Role::Id => self.check_id(problems),
            Role::Outbox => self.check_outbox(problems),
            Role::Inbox => self.check_inbox(problems),
            Role::Flattened | Role::Skipped => {}
            Role::Stored => self.check_readable(container, problems),
        }

        if matches!(self.role, Role::Inbox | Role::Stored) {
            self.check_names(problems);
            self.check_alias(problems);
        }
        if let Some(place) = self.options.place("renamed")
            && !self.serde.has("alias")
        {
            problems.add(
                place,
                "`renamed` says that `#[serde(alias = \"…\")]` is safe, but the field has no alias",
            );
        }
    }

    fn check_id(&self, problems: &mut Problems) {
        let skips = ["skip", "skip_serializing", "skip_deserializing", "skip_serializing_if"];
        if let Some(skip) = self.serde.any_of(&skips) {
            let key = &skip.key;
            problems.add(
                skip.span,
                format!("`{key}` on the id: if a save leaves out `_id`, MongoDB makes one that the program does not know; remove `{key}`"),
            );
        }
        if self.names.read != ID {
            problems.add(
                self.span(),
                format!("the id is written as `_id` and read as `{}`; read it as `_id` too", self.names.read),
            );
        }
        if let Some(alias) = self.serde.find("alias") {
            let sentence = "`alias` on the id: each document has an `_id`, and a document with both names can \
                            no longer be loaded; remove `alias`";
            problems.add(alias.span, sentence);
        }
        if let Some(flatten) = self.serde.find("flatten") {
            problems
                .add(flatten.span, "`flatten` on the id: then the document gets no `_id`; remove `flatten`");
        }
    }

    fn check_outbox(&self, problems: &mut Problems) {
        if let Some(flatten) = self.serde.find("flatten") {
            problems.add(
                flatten.span,
                "`flatten` on the outbox: the save writes the outbox separately; write `skip` instead",
            );
        } else if !self.serde.is_skipped() {
            problems.add(
                self.span(),
                "the outbox is written by the save, not as a field of the struct: mark it `#[serde(skip)]`",
            );
        }
    }

    fn check_inbox(&self, problems: &mut Problems) {
        let skips = ["skip", "skip_serializing", "skip_deserializing"];
        if let Some(skip) = self.serde.any_of(&skips) {
            let key = &skip.key;
            problems.add(
                skip.span,
                format!(
                    "`{key}` on an inbox: an inbox must be stored and read, because otherwise it forgets the messages it \
                     received; write `#[serde(default)]`"
                ),
            );
        }
        if let Some(flatten) = self.serde.find("flatten") {
            problems.add(
                flatten.span,
                "`flatten` on an inbox: an inbox is stored as an array under a name; remove `flatten`",
            );
        }
    }

    /// Checks that the stored value can be decoded as the same struct again.
    fn check_readable(&self, container: &SerdeAttributes, problems: &mut Problems) {
        let has_default = self.serde.has("default") || container.has("default");
        let is_optional = last_segment(self.ty).as_deref() == Some("Option")
            && self.serde.any_of(&["with", "deserialize_with"]).is_none();

        let skips = self.serde.any_of(&["skip_serializing", "skip_serializing_if"]);
        if let Some(skip) = skips
            && !has_default
            && !is_optional
            && !self.serde.has("skip_deserializing")
        {
            let key = &skip.key;
            problems.add(
                skip.span,
                format!(
                    "`{key}` without a default: a document without `{}` can no longer be loaded; add `#[serde(default)]`",
                    self.names.read
                ),
            );
        }

        let Directions { write, read } = &self.names;
        let is_read_so = self.serde.all("alias").any(|alias| alias.text.as_ref() == Some(write));
        let is_one_way = self.serde.any_of(&["skip_serializing", "skip_deserializing"]).is_some();
        if write != read && !is_read_so && !is_one_way {
            problems.add(
                self.span(),
                format!(
                    "written as `{write}` and read as `{read}`: a saved document can't be loaded; use one name"
                ),
            );
        }
    }

    fn check_names(&self, problems: &mut Problems) {
        for name in [&self.names.write, &self.names.read] {
            if RESERVED.contains(&name.as_str()) {
                problems.add(
                    self.span(),
                    format!("stored as `{name}`, which belongs to the library; rename the field"),
                );
                return;
            }
        }

        let name = &self.names.write;
        if self.is_stored() && (name.is_empty() || name.starts_with('$') || name.contains('.')) {
            problems.add(
                self.span(),
                format!(
                    "stored as `{name}`: MongoDB cannot update a field whose name is empty, begins with `$` or holds a \
                     dot; rename the field"
                ),
            );
        }
    }

    fn check_alias(&self, problems: &mut Problems) {
        for alias in self.serde.all("alias") {
            let old = alias.text.as_deref().unwrap_or_default();
            if old == ID || RESERVED.contains(&old) {
                problems.add(
                    alias.span,
                    format!("each document already has another field `{old}`; remove the alias"),
                );
            } else if self.options.place("renamed").is_none() && old != self.names.write {
                problems.add(
                    alias.span,
                    format!(
                        "`alias` on a stored field: a document that a process with the old name saves has both \
                         `{old}` and `{}`, and can no longer be loaded; once no such process runs, confirm that with \
                         `#[aggregate(renamed)]`",
                        self.names.write
                    ),
                );
            }
        }
    }
}

fn names(ident: &Ident, serde: &SerdeAttributes, container: &SerdeAttributes) -> Directions<String> {
    let own = serde.directions("rename");
    let all = container.directions("rename_all");
    let bare = ident.unraw().to_string();

    let name = |own: Option<&str>, all: Option<&str>| match own {
        Some(name) => name.to_owned(),
        None => all.map_or(RenameRule::default(), RenameRule::named).of_field(&bare),
    };
    Directions { write: name(own.write, all.write), read: name(own.read, all.read) }
}

fn role(ty: &Type, serde: &SerdeAttributes, options: &Options, names: &Directions<String>) -> Role {
    let type_name = last_segment(ty);
    if options.place("outbox").is_some() || type_name.as_deref() == Some("Outbox") {
        Role::Outbox
    } else if names.write == ID {
        Role::Id
    } else if type_name.as_deref() == Some("Inbox") {
        Role::Inbox
    } else if serde.is_skipped() {
        Role::Skipped
    } else if serde.has("flatten") {
        Role::Flattened
    } else {
        Role::Stored
    }
}

/// Returns the name of a type without its path and parameters.
fn last_segment(ty: &Type) -> Option<String> {
    match ty {
        Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
        Type::Group(group) => last_segment(&group.elem),
        Type::Paren(paren) => last_segment(&paren.elem),
        _ => None,
    }
}
