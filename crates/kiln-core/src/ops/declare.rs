//! The macros that declare operations: one field list gives the struct, the mapping of its tensors
//! and the accesses the planner sees.

/// A tensor that is read.
pub type Read<T> = T;
/// A tensor that is written in full.
pub type Write<T> = T;
/// A tensor of which a part is written and the rest kept.
pub type Update<T> = T;
/// A tensor that may be absent, read.
pub type MaybeRead<T> = Option<T>;
/// A tensor that may be absent, written in full.
pub type MaybeWrite<T> = Option<T>;
/// A tensor that may be absent, of which a part is written and the rest kept.
pub type MaybeUpdate<T> = Option<T>;

macro_rules! map_field {
    ($op:literal MaybeRead $name:ident $field:expr, $f:ident) => {
        map_field!(@maybe $op Read $name $field, $f)
    };
    ($op:literal MaybeWrite $name:ident $field:expr, $f:ident) => {
        map_field!(@maybe $op Write $name $field, $f)
    };
    ($op:literal MaybeUpdate $name:ident $field:expr, $f:ident) => {
        map_field!(@maybe $op Update $name $field, $f)
    };
    (@maybe $op:literal $Access:ident $name:ident $field:expr, $f:ident) => {
        match $field {
            Some(tensor) => Some(map_field!($op $Access $name tensor, $f)),
            None => None,
        }
    };
    ($op:literal $Access:ident $name:ident $field:expr, $f:ident) => {
        $f(Role::new($op, stringify!($name), Access::$Access), $field)?
    };
}

/// Declares an operation.
///
/// `Read`, `Write` and `Update` (a part is written) name the tensors in order, `Maybe` makes one
/// optional. `in_place` lists the pairs (output, input) that may be the same view.
macro_rules! op {
    (
        $(#[$meta:meta])*
        $Name:ident = $name:literal, in_place: [$(($out:ident, $input:ident)),*],
        tensors { $($(#[$tm:meta])* $Role:ident $tensor:ident,)* }
        params { $($(#[$pm:meta])* $param:ident: $Param:ty,)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $Name<T> {
            $($(#[$tm])* pub $tensor: $Role<T>,)*
            $($(#[$pm])* pub $param: $Param,)*
        }

        impl<T> $Name<T> {
            /// The name of the operation, the same stem in every crate.
            pub const NAME: &'static str = $name;

            /// Outputs that may be the same view as an input: pairs of (output, input).
            pub const IN_PLACE: &'static [(&'static str, &'static str)] =
                &[$((stringify!($out), stringify!($input))),*];

            /// The same operation on other tensor handles, made one by one in field order.
            ///
            /// # Errors
            /// The first that `f` returns.
            pub fn try_map<U, E>(
                &self,
                mut f: impl FnMut(Role, &T) -> Result<U, E>,
            ) -> Result<$Name<U>, E> {
                Ok($Name {
                    $($tensor: map_field!($name $Role $tensor &self.$tensor, f),)*
                    $($param: self.$param.clone(),)*
                })
            }
        }

        impl From<$Name<&Tensor>> for Op<Tensor> {
            fn from(op: $Name<&Tensor>) -> Self {
                Op::$Name(clone_tensors(op.try_map(|_, tensor| Ok((*tensor).clone()))))
            }
        }

        impl From<$Name<Tensor>> for Op<Tensor> {
            fn from(op: $Name<Tensor>) -> Self {
                Op::$Name(op)
            }
        }
    };
}

/// Declares the sum of all operations.
macro_rules! op_enum {
    ($($Name:ident,)*) => {
        /// Any operation, on tensor handles of type `T`: [`Tensor`] in a recording, a backend's own
        /// resolved view when it executes.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Op<T> {
            $(#[doc = concat!("See [`", stringify!($Name), "`](struct@", stringify!($Name), ").")]
             $Name($Name<T>),)*
        }

        impl<T> Op<T> {
            /// Names of all operations, in declaration order.
            pub const NAMES: &'static [&'static str] = &[$($Name::<()>::NAME,)*];

            /// The name of the operation.
            pub fn name(&self) -> &'static str {
                match self { $(Op::$Name(_) => $Name::<T>::NAME,)* }
            }

            /// Outputs that may be the same view as an input: pairs of (output, input).
            pub fn in_place(&self) -> &'static [(&'static str, &'static str)] {
                match self { $(Op::$Name(_) => $Name::<T>::IN_PLACE,)* }
            }

            /// The same operation on other tensor handles, made one by one in field order.
            ///
            /// # Errors
            /// The first that `f` returns.
            pub fn try_map<U, E>(
                &self,
                f: impl FnMut(Role, &T) -> Result<U, E>,
            ) -> Result<Op<U>, E> {
                Ok(match self { $(Op::$Name(op) => Op::$Name(op.try_map(f)?),)* })
            }
        }

        impl Op<Tensor> {
            /// Checks shapes, types and parameters against the contract.
            ///
            /// # Errors
            /// The first rule that is broken.
            pub fn check(&self) -> Result<(), OpError> {
                match self { $(Op::$Name(op) => op.check(),)* }
            }

            /// Floating-point operations, a multiply-add counted as two.
            pub fn flops(&self) -> u64 {
                match self { $(Op::$Name(op) => op.flops(),)* }
            }

            /// Bytes of memory that must be moved at least: each input read once, each output
            /// written once.
            pub fn bytes(&self) -> u64 {
                match self {
                    $(Op::$Name(op) => op.bytes().unwrap_or_else(|| self.operand_bytes()),)*
                }
            }
        }
    };
}
