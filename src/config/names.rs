//! Structs of settings that know the names of their fields.

/// Defines a struct of settings, with `NAMES`: the names of its fields, under which records keep them.
macro_rules! settings {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$meta])*
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        impl $name {
            /// Names of the settings.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($field)),*];
        }
    };
}

pub(super) use settings;
