//! Settings: declared once, in the part they belong to, with type, default, unit and meaning.
//!
//! Holds: the [`settings!`](crate::settings) macro, and what is made from it: the file reader (unknown key = error that
//! names it), the order file < environment < flag, the generated reference. Not here: any particular setting.

/// What a section says of itself.
pub trait Documented {
    /// What the section is for.
    const ABOUT: &'static str;
    /// Its fields in order: name and doc comment.
    fn fields() -> Vec<(&'static str, &'static str)>;
}

/// Declares a section of settings: the struct, its defaults, its documentation; refuses unknown keys.
///
/// ```
/// tributary_shared::settings! {
///     /// Example section.
///     pub struct Settings {
///         /// How many, 1 to 100.
///         pub count: u32 = 10,
///     }
/// }
/// assert_eq!(Settings::default().count, 10);
/// ```
#[macro_export]
macro_rules! settings {
    ($(#[doc = $about:literal])* pub struct $name:ident { $( $(#[doc = $doc:literal])* pub $field:ident : $ty:ty = $default:expr ),* $(,)? }) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $( $(#[doc = $doc])* pub $field: $ty, )* }
        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }
        impl $crate::config::Documented for $name {
            const ABOUT: &'static str = concat!($($about, "\n"),*);
            fn fields() -> Vec<(&'static str, &'static str)> {
                vec![ $( (stringify!($field), concat!($($doc, "\n"),*)) ),* ]
            }
        }
    };
}
