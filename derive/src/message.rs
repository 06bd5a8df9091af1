//! `#[derive(Message)]`.

use proc_macro2::{Span, TokenStream};
use quote::quote;
use syn::{Data, DataEnum, DeriveInput, Error, Ident, LitStr, Path, Result, Variant, ext::IdentExt};

use crate::{
    options::{Key, Options, Problems, Takes},
    rename::snake,
    serde_attributes::SerdeAttributes,
};

/// Maximum length of a message `type`, which becomes the routing key, an AMQP short string.
const MAX_TYPE_BYTES: usize = 255;

const TYPE: Key = Key { name: "type", takes: Takes::Text };
const ALIAS: Key = Key { name: "alias", takes: Takes::Texts };
const SCHEMA: Key = Key { name: "schema", takes: Takes::Text };
const PREFIX: Key = Key { name: "prefix", takes: Takes::Text };
const CRATE: Key = Key { name: "crate", takes: Takes::Text };

/// The names of a message type.
struct Named {
    name: String,
    aliases: Vec<String>,
    schema: Option<LitStr>,
}

/// Generates the implementation of the trait.
///
/// # Errors
/// Returns an error for names that can't be sent, and for variants that can't be distinguished.
pub(crate) fn derive(input: &DeriveInput) -> Result<TokenStream> {
    let options = Options::read(&input.attrs, "message", &[TYPE, PREFIX, ALIAS, SCHEMA, CRATE])?;
    match &input.data {
        Data::Struct(_) => {
            if let Some(place) = options.place("prefix") {
                return Err(Error::new(
                    place,
                    "`prefix` is for the variants of an enum; a struct has a `type`",
                ));
            }
            of_one_type(input, &options)
        }
        Data::Enum(data) => match options.text("prefix") {
            Some(prefix) => of_variants(input, data, &options, prefix),
            None => of_one_type(input, &options),
        },
        Data::Union(_) => Err(Error::new(input.ident.span(), "a union can't be a message")),
    }
}

/// Generates the implementation for a struct, or for an enum whose variants all have the same message type.
fn of_one_type(input: &DeriveInput, options: &Options) -> Result<TokenStream> {
    let Some(name) = options.text("type") else {
        let or = match input.data {
            Data::Enum(_) => ", or `#[message(prefix = \"order\")]` for a type for each variant",
            _ => "",
        };
        let sentence = format!(
            "a message needs a name that is stored and sent, and so outlives the code: \
             `#[message(type = \"order.paid\")]`{or}"
        );
        return Err(Error::new(input.ident.span(), sentence));
    };

    let Named { name, aliases, schema } = named(name.value(), name.span(), options)?;
    let schema = option(schema.as_ref());
    let aliases = aliases_constant(&aliases);
    let body = quote! {
        const TYPE: &'static str = #name;
        #aliases
        const SCHEMA: ::core::option::Option<&'static str> = #schema;
    };
    Ok(implementation(input, &options.library()?, &body))
}

/// Generates the implementation for an enum in which each variant has its own message type.
fn of_variants(
    input: &DeriveInput,
    data: &DataEnum,
    options: &Options,
    prefix: &LitStr,
) -> Result<TokenStream> {
    let mut problems = Problems::default();
    for key in ["type", "alias"] {
        if let Some(place) = options.place(key) {
            problems.add(
                place,
                format!("with `prefix` each variant has a type of its own: write `{key}` on the variant"),
            );
        }
    }
    if let Some(untagged) = SerdeAttributes::read(&input.attrs).find("untagged") {
        problems.add(
            untagged.span,
            "`untagged` with a type for each variant: a message would be decoded as the first variant \
             that fits; remove `untagged`",
        );
    }
    if prefix.value().is_empty() {
        problems.add(prefix.span(), "the prefix is empty");
    }
    if data.variants.is_empty() {
        problems.add(input.ident.span(), "an enum without variants has no message to send");
    }

    let mut variants: Vec<(&Ident, Named)> = Vec::new();
    for variant in &data.variants {
        let Some(named) = problems.some(of_variant(variant, &prefix.value())) else { continue };
        match variants.iter().find(|(_, earlier)| earlier.shares_a_name(&named)) {
            Some((earlier, _)) => problems.add(
                variant.ident.span(),
                format!("`{}` and `{earlier}` have a type or an alias in common", variant.ident),
            ),
            None => variants.push((&variant.ident, named)),
        }
    }
    problems.none_or(())?;

    let body = variants_body(&prefix.value(), options.text("schema"), &variants);
    Ok(implementation(input, &options.library()?, &body))
}

fn of_variant(variant: &Variant, prefix: &str) -> Result<Named> {
    let options = Options::read(&variant.attrs, "message", &[TYPE, ALIAS, SCHEMA])?;
    let serde = SerdeAttributes::read(&variant.attrs);
    if let Some(skip) = serde.any_of(&["skip", "skip_serializing"]) {
        let sentence = format!(
            "`{}` on a variant: the variant can't be sent; remove the attribute or the variant",
            skip.key
        );
        return Err(Error::new(skip.span, sentence));
    }
    if let Some(untagged) = serde.find("untagged") {
        let sentence = "`untagged` on a variant with its own type: the variant may be decoded as another one; \
                        remove the attribute";
        return Err(Error::new(untagged.span, sentence));
    }

    if let Some(name) = options.text("type") {
        return named(name.value(), name.span(), &options);
    }
    let name = format!("{prefix}.{}", snake(&variant.ident.unraw().to_string()));
    named(name, variant.ident.span(), &options)
}

fn variants_body(prefix: &str, of_all: Option<&LitStr>, variants: &[(&Ident, Named)]) -> TokenStream {
    let idents: Vec<_> = variants.iter().map(|(ident, _)| ident).collect();
    let names: Vec<_> = variants.iter().map(|(_, named)| &named.name).collect();
    let aliases: Vec<_> = variants.iter().flat_map(|(_, named)| named.aliases.clone()).collect();
    let aliases = aliases_constant(&aliases);

    let schemas = variants.iter().map(|(ident, named)| {
        let schema = option(named.schema.as_ref().or(of_all));
        quote!(Self::#ident { .. } => #schema)
    });
    quote! {
        const TYPE: &'static str = #prefix;
        const TYPES: &'static [&'static str] = &[#(#names),*];
        #aliases

        fn message_type(&self) -> &'static str {
            match self {
                #(Self::#idents { .. } => #names,)*
            }
        }

        fn schema(&self) -> ::core::option::Option<&'static str> {
            match self {
                #(#schemas,)*
            }
        }
    }
}

impl Named {
    fn shares_a_name(&self, other: &Self) -> bool {
        let is_in = |name: &String, named: &Self| named.name == *name || named.aliases.contains(name);
        is_in(&self.name, other) || self.aliases.iter().any(|alias| is_in(alias, other))
    }
}

/// Checks the current and former names of a message type.
fn named(name: String, place: Span, options: &Options) -> Result<Named> {
    let mut problems = Problems::default();
    check_length("type", &name, place, &mut problems);

    let mut aliases = Vec::new();
    for alias in options.texts("alias") {
        let text = alias.value();
        check_length("alias", &text, alias.span(), &mut problems);
        if text == name {
            problems.add(alias.span(), format!("`{text}` is the type itself; an alias is a former name"));
        } else if aliases.contains(&text) {
            problems.add(alias.span(), format!("the alias `{text}` is given twice"));
        }
        aliases.push(text);
    }

    let schema = options.text("schema").cloned();
    if let Some(schema) = &schema
        && schema.value().is_empty()
    {
        problems.add(schema.span(), "the schema is empty; leave it out");
    }
    problems.none_or(Named { name, aliases, schema })
}

fn check_length(key: &str, name: &str, place: Span, problems: &mut Problems) {
    if name.is_empty() {
        problems.add(place, format!("the {key} is empty"));
    } else if name.len() > MAX_TYPE_BYTES {
        problems.add(
            place,
            format!(
                "the {key} has {} bytes; a routing key of RabbitMQ has at most {MAX_TYPE_BYTES}",
                name.len()
            ),
        );
    }
}

fn option(text: Option<&LitStr>) -> TokenStream {
    let Some(text) = text else {
        return quote!(::core::option::Option::None);
    };
    quote!(::core::option::Option::Some(#text))
}

fn aliases_constant(aliases: &[String]) -> Option<TokenStream> {
    if aliases.is_empty() {
        return None;
    }
    Some(quote!(const ALIASES: &'static [&'static str] = &[#(#aliases),*];))
}

fn implementation(input: &DeriveInput, library: &Path, body: &TokenStream) -> TokenStream {
    let name = &input.ident;
    let mut generics = input.generics.clone();
    if generics.type_params().next().is_some() {
        let (_, own, _) = input.generics.split_for_impl();
        let serialized = syn::parse_quote!(#name #own: #library::derived::Serialize);
        generics.make_where_clause().predicates.push(serialized);
    }
    let (generics, own, bounds) = generics.split_for_impl();

    quote! {
        #[automatically_derived]
        impl #generics #library::Message for #name #own #bounds {
            #body
        }
    }
}
