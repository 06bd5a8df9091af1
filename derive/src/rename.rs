//! Derives stored names from the names in the code, as serde does for `rename_all`.

/// A rule of [`rename_all`](https://serde.rs/container-attrs.html#rename_all), for fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum RenameRule {
    #[default]
    AsItIs,
    Upper,
    Pascal,
    Camel,
    Kebab,
    UpperKebab,
}

impl RenameRule {
    /// Returns the rule with this name. If there is no such rule, serde itself reports the problem.
    pub(crate) fn named(name: &str) -> Self {
        match name {
            "UPPERCASE" | "SCREAMING_SNAKE_CASE" => Self::Upper,
            "PascalCase" => Self::Pascal,
            "camelCase" => Self::Camel,
            "kebab-case" => Self::Kebab,
            "SCREAMING-KEBAB-CASE" => Self::UpperKebab,
            // For `lowercase` and `snake_case`, serde assumes that a field's name already has the wanted form.
            _ => Self::AsItIs,
        }
    }

    /// Returns the stored name of a field.
    pub(crate) fn of_field(self, field: &str) -> String {
        match self {
            Self::AsItIs => field.to_owned(),
            Self::Upper => field.to_ascii_uppercase(),
            Self::Pascal => pascal(field),
            Self::Camel => {
                let pascal = pascal(field);
                let first = pascal.chars().next().map_or(0, char::len_utf8);
                pascal[..first].to_ascii_lowercase() + &pascal[first..]
            }
            Self::Kebab => field.replace('_', "-"),
            Self::UpperKebab => field.to_ascii_uppercase().replace('_', "-"),
        }
    }
}

fn pascal(field: &str) -> String {
    let mut pascal = String::new();
    let mut is_first_of_word = true;
    for letter in field.chars() {
        if letter == '_' {
            is_first_of_word = true;
        } else if is_first_of_word {
            pascal.push(letter.to_ascii_uppercase());
            is_first_of_word = false;
        } else {
            pascal.push(letter);
        }
    }
    pascal
}

/// Returns the name of a variant in `snake_case`, as serde converts it.
pub(crate) fn snake(variant: &str) -> String {
    let mut snake = String::new();
    for (place, letter) in variant.char_indices() {
        if place > 0 && letter.is_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}
