//! The one way a section is written down: field, type and default on a line.

/// Declares a section: its struct (with `Deserialize` that refuses unknown keys), its defaults,
/// its list of keys and a setter from text for environment and flags.
macro_rules! section {
    ($(#[$meta:meta])* $name:ident in $section:literal {
        $( $(#[$field_meta:meta])* $field:ident: $kind:ty = $default:expr, )*
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: $kind, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl $name {
            /// The keys of this section, as `section.key`.
            pub const KEYS: &'static [&'static str] =
                &[ $( concat!($section, ".", stringify!($field)), )* ];

            /// Sets a key (without the section) from text; `None` if there is no such key.
            pub(super) fn set(&mut self, key: &str, text: &str) -> Option<Result<(), String>> {
                match key {
                    $( stringify!($field) => Some(
                        $crate::config::FromText::from_text(text).map(|value| self.$field = value)
                    ), )*
                    _ => None,
                }
            }
        }
    };
}

pub(super) use section;
