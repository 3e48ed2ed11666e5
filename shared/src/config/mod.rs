//! Settings: declared once, in the part they belong to, with type, default, bounds, unit and meaning.
//!
//! Holds: the [`settings!`](crate::settings) macro, and what is made from it: the reader ([`Loader`]: file < environment <
//! flag; an unknown key or a bad value is an error that names it), the generated reference ([`reference()`]).
//! A program's settings are one more `settings!` struct whose fields are the sections of its parts.
//! Not here: any particular setting.

mod document;
mod load;

pub use document::{is_current, reference};
pub use load::{ConfigError, Loader};

/// What a section says of itself. Implemented by [`settings!`](crate::settings).
pub trait Documented {
    /// What the section is for.
    const ABOUT: &'static str;
    /// Its fields in order.
    fn fields() -> Vec<Field>;
    /// Every value is within its bounds, in the sections inside too.
    fn check(&self) -> Result<(), Refused>;
}

/// One key of a section.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Key.
    pub name: &'static str,
    /// Doc comment, lines as written.
    pub doc: &'static str,
    /// Bounds, as written.
    pub allowed: Option<&'static str>,
    /// What stands there.
    pub kind: Kind,
}

/// What a key holds.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A value.
    Value,
    /// A section: `[name]`.
    Section(fn() -> Vec<Field>),
    /// Any number of sections of one form: `[[name]]`.
    List(fn() -> Vec<Field>),
}

/// A value that is outside its bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` = {value} is out of bounds, allowed is {allowed}")]
pub struct Refused {
    /// Dotted.
    pub key: String,
    /// As Rust prints it.
    pub value: String,
    /// Bounds as written.
    pub allowed: &'static str,
}

impl Refused {
    /// The same, seen from the section around it.
    #[must_use]
    pub fn within(mut self, section: &str) -> Self {
        self.key = format!("{section}.{}", self.key);
        self
    }
}

/// Declares a section of settings: the struct, its defaults, its documentation; refuses unknown keys. Bounds follow `=>`
/// and are anything with `contains`. A field whose type is another such struct, or a `Vec` of it, is a section inside.
///
/// ```
/// tributary_shared::settings! {
///     /// Example section.
///     pub struct Settings {
///         /// How many.
///         pub count: u32 = 10 => 1..=100,
///         /// What for.
///         pub name: String = "all".to_owned(),
///     }
/// }
/// use tributary_shared::config::Documented;
/// assert_eq!(Settings::default().count, 10);
/// assert!(Settings { count: 0, ..Settings::default() }.check().is_err());
/// ```
#[macro_export]
macro_rules! settings {
    ($(#[doc = $about:literal])* pub struct $name:ident { $( $(#[doc = $doc:literal])* pub $field:ident : $ty:ty = $default:expr $(=> $allowed:expr)? ),* $(,)? }) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        #[allow(unreachable_pub)]
        pub struct $name { $( $(#[doc = $doc])* pub $field: $ty, )* }
        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }
        impl $crate::config::Documented for $name {
            const ABOUT: &'static str = concat!($($about, "\n"),*);
            fn fields() -> Vec<$crate::config::Field> {
                #[allow(unused_imports)]
                use $crate::config::probe::{KindOfList as _, KindOfSection as _, KindOfValue as _};
                #[allow(unused_mut, unused_assignments)]
                {
                    vec![ $( {
                        let mut allowed = None;
                        $( allowed = Some(stringify!($allowed)); )?
                        $crate::config::Field {
                            name: stringify!($field),
                            doc: concat!($($doc, "\n"),*),
                            allowed,
                            kind: (&&&$crate::config::probe::Type::<$ty>::NEW).kind(),
                        }
                    } ),* ]
                }
            }
            fn check(&self) -> Result<(), $crate::config::Refused> {
                #[allow(unused_imports)]
                use $crate::config::probe::{CheckList as _, CheckSection as _, CheckValue as _};
                $(
                    $( if !($allowed).contains(&self.$field) {
                        return Err($crate::config::Refused {
                            key: stringify!($field).to_owned(),
                            value: format!("{:?}", self.$field),
                            allowed: stringify!($allowed),
                        });
                    } )?
                    (&&&$crate::config::probe::Value(&self.$field))
                        .check()
                        .map_err(|refused| refused.within(stringify!($field)))?;
                )*
                Ok(())
            }
        }
    };
}

/// How the macro tells a section from a value without being told: method lookup takes the first trait that fits, and
/// each reference in `&&&Type` gives a later one a turn.
#[doc(hidden)]
#[allow(missing_docs, clippy::missing_const_for_fn)]
pub mod probe {
    use std::marker::PhantomData;

    use super::{Documented, Kind, Refused};

    #[derive(Debug)]
    pub struct Type<T>(PhantomData<T>);

    impl<T> Type<T> {
        pub const NEW: Self = Self(PhantomData);
    }

    pub trait KindOfSection {
        fn kind(&self) -> Kind;
    }
    impl<T: Documented> KindOfSection for &&Type<T> {
        fn kind(&self) -> Kind {
            Kind::Section(T::fields)
        }
    }
    pub trait KindOfList {
        fn kind(&self) -> Kind;
    }
    impl<T: Documented> KindOfList for &Type<Vec<T>> {
        fn kind(&self) -> Kind {
            Kind::List(T::fields)
        }
    }
    pub trait KindOfValue {
        fn kind(&self) -> Kind;
    }
    impl<T> KindOfValue for Type<T> {
        fn kind(&self) -> Kind {
            Kind::Value
        }
    }

    #[derive(Debug)]
    pub struct Value<'a, T>(pub &'a T);

    pub trait CheckSection {
        fn check(&self) -> Result<(), Refused>;
    }
    impl<T: Documented> CheckSection for &&Value<'_, T> {
        fn check(&self) -> Result<(), Refused> {
            self.0.check()
        }
    }
    pub trait CheckList {
        fn check(&self) -> Result<(), Refused>;
    }
    impl<T: Documented> CheckList for &Value<'_, Vec<T>> {
        fn check(&self) -> Result<(), Refused> {
            self.0.iter().try_for_each(Documented::check)
        }
    }
    pub trait CheckValue {
        fn check(&self) -> Result<(), Refused>;
    }
    impl<T> CheckValue for Value<'_, T> {
        fn check(&self) -> Result<(), Refused> {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests;
