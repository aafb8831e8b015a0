//! Definition of an object in a request: its type, its reader and its schema, from one list of members.

/// Defines an object in a request. After its type, each member has the method of [`Object`](super::Object) that reads
/// it, with the arguments behind the name. `ToSchema` is derived from the same list, so the OpenAPI document has exactly
/// the members that are read. A reader can use the members before its own, and the value that `with` names.
///
/// ```ignore
/// request_object! {
///     /// Body of a cancel request.
///     pub struct CancelBody: deny_unknown_fields, with now: Timestamp {
///         /// Reason of the cancellation.
///         reason: Option<String> = nullable(|node| node.string(0..=500)),
///     }
/// }
/// ```
macro_rules! request_object {
    (
        $(#[$about:meta])*
        $vis:vis struct $name:ident $(: $others:ident)? $(, with $context:ident: $context_type:ty)? {
            $($(#[$attribute:meta])* $member:ident: $type:ty = $method:ident($($argument:expr),+),)+
        }
    ) => {
        #[derive(utoipa::ToSchema)]
        $(#[$about])*
        $(#[serde($others)])?
        $vis struct $name {
            $($(#[$attribute])* $member: $type,)+
        }

        impl $name {
            fn read(
                object: &$crate::input::Object<'_>,
                $($context: $context_type,)?
            ) -> $crate::input::Read<Self> {
                let mut errors = Vec::new();
                $crate::input::request_object!(@others object errors [$($member)+] $($others)?);
                $(let $member = object.$method(stringify!($member), &mut errors, $($argument),+);)+
                if !errors.is_empty() {
                    return Err(errors);
                }
                $($crate::input::request_object!(@value $method $member errors);)+
                Ok(Self { $($member),+ })
            }
        }
    };
    (@others $object:ident $errors:ident [$($member:ident)+]) => {};
    (@others $object:ident $errors:ident [$($member:ident)+] deny_unknown_fields) => {
        $object.only(&[$(stringify!($member)),+], &mut $errors);
    };
    // A required member without a value has an error.
    (@value required $member:ident $errors:ident) => {
        let Some($member) = $member else { return Err($errors) };
    };
    (@value $method:ident $member:ident $errors:ident) => {};
}

pub(crate) use request_object;
