//! `#[derive(Aggregate)]`.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Data, DataStruct, DeriveInput, Error, Fields, Ident, LitStr, Result, WherePredicate};

use crate::{
    field::{Field, ID, Role},
    options::{Key, Options, Problems, Takes},
    serde_attributes::SerdeAttributes,
    suggestion::did_you_mean,
};

const KEYS: [Key; 3] = [
    Key { name: "crate", takes: Takes::Text },
    Key { name: "element_keys", takes: Takes::Text },
    Key { name: "ordering", takes: Takes::Text },
];

/// The variants of `DeliveryOrder`, as the services' settings name them.
const ORDERINGS: [(&str, &str); 3] =
    [("ordered", "Ordered"), ("dead_blocks", "DeadBlocks"), ("unordered", "Unordered")];

/// Generates the implementation of the trait.
///
/// # Errors
/// Returns an error for every mistake that would make a save or a load of the aggregate fail.
pub(crate) fn derive(input: &DeriveInput) -> Result<TokenStream> {
    let named = named_fields(input)?;
    let mut problems = Problems::default();
    let options = problems.or_default(Options::read(&input.attrs, "aggregate", &KEYS));
    let serde = SerdeAttributes::read(&input.attrs);

    let mut fields = Vec::new();
    for field in named {
        if let Some(ident) = &field.ident {
            fields.push(Field::read(field, ident, &serde, &mut problems));
        }
    }
    check_container(&serde, &mut problems);
    check_apart(&fields, &mut problems);
    for field in &fields {
        field.check(&serde, &mut problems);
    }

    let id = problems.some(the_id(&input.ident, &fields));
    let outbox = problems.some(the_outbox(&input.ident, &fields));
    let constants = problems.or_default(constants(&options, &fields));
    let (Some(id), Some(outbox)) = (id, outbox) else {
        return problems.none_or(TokenStream::new());
    };
    problems.none_or(())?;
    let mut inboxes = fields.iter().filter(|field| field.role == Role::Inbox);
    // If the struct has several inboxes, only the application's code can know which inbox a message belongs to.
    let inbox = inboxes.next().filter(|_| inboxes.next().is_none());
    implementation(input, &options, &Parts { id, outbox, inbox }, &constants)
}

/// The fields that the generated trait methods return.
struct Parts<'a> {
    id: &'a Field<'a>,
    outbox: &'a Field<'a>,
    inbox: Option<&'a Field<'a>>,
}

fn named_fields(input: &DeriveInput) -> Result<impl Iterator<Item = &syn::Field>> {
    let sentence = match &input.data {
        Data::Struct(DataStruct { fields: Fields::Named(fields), .. }) => return Ok(fields.named.iter()),
        Data::Struct(_) => "an aggregate is a struct with named fields: it has an id and an outbox",
        Data::Enum(_) | Data::Union(_) => {
            "`Aggregate` is derived for structs: put the enum into a field, or implement the trait by hand"
        }
    };
    Err(Error::new(input.ident.span(), sentence))
}

fn check_container(serde: &SerdeAttributes, problems: &mut Problems) {
    if let Some(other) = serde.any_of(&["into", "remote", "transparent"]) {
        let key = &other.key;
        problems.add(
            other.span,
            format!(
                "with `{key}`, serde stores something other than the fields of this type; implement `Aggregate` by hand"
            ),
        );
    }
    if let Some(deny) = serde.find("deny_unknown_fields") {
        let sentence = "`deny_unknown_fields` refuses the library's own fields `etag` and `outbox`, so no document would \
                        load; remove it";
        problems.add(deny.span, sentence);
    }
    if let Some(tag) = serde.find("tag")
        && let Some(name) = tag.text.as_deref()
        && ["_id", "etag", "outbox"].contains(&name)
    {
        problems
            .add(tag.span, format!("each document already has another field `{name}`; choose another name"));
    }
}

/// Checks that no two fields share a current or former name.
fn check_apart(fields: &[Field<'_>], problems: &mut Problems) {
    for (place, field) in fields.iter().enumerate() {
        let name = &field.names.write;
        let is_taken =
            fields[..place].iter().any(|earlier| earlier.is_stored() && earlier.names.write == *name);
        if field.is_stored() && is_taken {
            problems.add(field.span(), format!("two fields are stored as `{name}`"));
        }
    }
}

fn the_id<'a>(name: &Ident, fields: &'a [Field<'a>]) -> Result<&'a Field<'a>> {
    if let Some(id) = fields.iter().find(|field| field.role == Role::Id) {
        return Ok(id);
    }

    let likely = fields.iter().find(|field| field.ident == "id" && field.role != Role::Outbox);
    if let Some(likely) = likely {
        let sentence = match likely.role {
            Role::Skipped => {
                "the id is skipped, so the document gets no `_id`: write `#[serde(rename = \"_id\")]`".into()
            }
            _ => format!(
                "the id is stored as `{}`, and MongoDB would create an `_id` that the program does not know: mark the id \
                 `#[serde(rename = \"{ID}\")]`",
                likely.names.write
            ),
        };
        return Err(Error::new(likely.span(), sentence));
    }
    let mut sentence =
        "no field is stored as `_id`: mark the aggregate's id `#[serde(rename = \"_id\")]`".to_owned();
    if fields.iter().any(|field| field.role == Role::Flattened) {
        sentence +=
            ", or implement `Aggregate` by hand if it is in a flattened field, which a derive can't see";
    }
    Err(Error::new(name.span(), sentence))
}

fn the_outbox<'a>(name: &Ident, fields: &'a [Field<'a>]) -> Result<&'a Field<'a>> {
    let mut outboxes = fields.iter().filter(|field| field.role == Role::Outbox);
    let Some(outbox) = outboxes.next() else {
        let sentence = "no field has the type `Outbox`: add `#[serde(skip)] outbox: Outbox`, or put \
                        `#[aggregate(outbox)]` on a field whose type has another name";
        return Err(Error::new(name.span(), sentence));
    };
    match outboxes.next() {
        Some(second) => {
            Err(Error::new(second.span(), "an aggregate has one outbox, and this is a second one"))
        }
        None => Ok(outbox),
    }
}

/// Generates the constants that differ from the trait's defaults.
fn constants(options: &Options, fields: &[Field<'_>]) -> Result<TokenStream> {
    let library = options.library()?;
    let mut constants = TokenStream::new();

    if let Some(ordering) = options.text("ordering") {
        let variant = ordering_named(ordering)?;
        constants.extend(quote! {
            const ORDERING: #library::DeliveryOrder = #library::DeliveryOrder::#variant;
        });
    }
    if let Some(keys) = options.text("element_keys") {
        let mut pairs = Vec::new();
        for key in keys.value().split(',') {
            let (path, field) = element_key(key.trim(), keys, fields)?;
            pairs.push(quote!((#path, #field)));
        }
        constants.extend(quote! {
            const ELEMENT_KEYS: &'static [(&'static str, &'static str)] = &[#(#pairs),*];
        });
    }
    Ok(constants)
}

fn ordering_named(ordering: &LitStr) -> Result<Ident> {
    let given = ordering.value();
    if let Some((_, variant)) = ORDERINGS.iter().find(|(name, _)| *name == given) {
        return Ok(format_ident!("{variant}"));
    }
    let hint = did_you_mean(&given, ORDERINGS.map(|(name, _)| name));
    let sentence = format!("unknown ordering `{given}`{hint}; write `ordered`, `dead_blocks` or `unordered`");
    Err(Error::new(ordering.span(), sentence))
}

/// Parses an element key: the path of an array, a dot, and the field that identifies the array's elements.
fn element_key(key: &str, keys: &LitStr, fields: &[Field<'_>]) -> Result<(String, String)> {
    let Some((path, field)) =
        key.rsplit_once('.').filter(|(path, field)| !path.is_empty() && !field.is_empty())
    else {
        let sentence = format!("`{key}` should be the path of an array, a dot, and a field: `lines.sku`");
        return Err(Error::new(keys.span(), sentence));
    };

    let array = path.split('.').next().unwrap_or(path);
    let stored = fields.iter().filter(|field| field.is_stored()).map(|field| field.names.write.as_str());
    let may_be_flattened = fields.iter().any(|field| field.role == Role::Flattened);
    if !may_be_flattened && !stored.clone().any(|name| name == array) {
        let hint = did_you_mean(array, stored);
        return Err(Error::new(keys.span(), format!("no field is stored as `{array}`{hint}")));
    }
    Ok((path.to_owned(), field.to_owned()))
}

fn implementation(
    input: &DeriveInput,
    options: &Options,
    parts: &Parts<'_>,
    constants: &TokenStream,
) -> Result<TokenStream> {
    let library = options.library()?;
    let name = &input.ident;
    let (id, id_type, outbox) = (parts.id.ident, parts.id.ty, parts.outbox.ident);
    let mut generics = input.generics.clone();
    if generics.type_params().next().is_some() {
        let (_, own, _) = input.generics.split_for_impl();
        let stored = syn::parse_quote!(#name #own: #library::derived::Stored);
        let named = syn::parse_quote!(#id_type: #library::derived::Id);
        generics.make_where_clause().predicates.extend::<[WherePredicate; 2]>([stored, named]);
    }
    let (generics, own, bounds) = generics.split_for_impl();

    let returned = quote::quote_spanned!(outbox.span()=> &mut self.#outbox);
    let receiving = parts.inbox.map(|inbox| {
        let inbox = inbox.ident;
        let returned = quote::quote_spanned!(inbox.span()=> &mut self.#inbox);
        quote! {
            #[automatically_derived]
            impl #generics #library::ReceivingAggregate for #name #own #bounds {
                fn inbox(&mut self) -> &mut #library::Inbox {
                    #returned
                }
            }
        }
    });
    Ok(quote! {
        #[automatically_derived]
        impl #generics #library::Aggregate for #name #own #bounds {
            type Id = #id_type;
            #constants

            fn id(&self) -> &Self::Id {
                &self.#id
            }

            fn outbox(&mut self) -> &mut #library::Outbox {
                #returned
            }
        }

        #receiving
    })
}
