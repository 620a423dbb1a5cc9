//! One source for the argument structs of GPU kernels.

/// A kernel's argument struct with its declaration in each shading language.
pub trait KernelArgs: bytemuck::Pod {
    /// The Metal Shading Language declaration, with a check of its size.
    fn msl() -> String;

    /// The CUDA C++ declaration, with a check of its size.
    fn cuda() -> String;
}

/// The name of a scalar type in each language.
#[doc(hidden)]
pub const fn scalar_names(rust: &str) -> [&'static str; 2] {
    match rust.as_bytes() {
        b"u32" => ["uint", "unsigned int"],
        b"i32" => ["int", "int"],
        b"f32" => ["float", "float"],
        b"u64" => ["ulong", "unsigned long long"],
        b"i64" => ["long", "long long"],
        _ => panic!("kernel arguments are u32, i32, f32, u64 or i64"),
    }
}

#[doc(hidden)]
pub fn declaration(name: &str, size: usize, fields: &[(&str, &str)], language: usize) -> String {
    let mut text = format!("struct {name} {{\n");
    for (field, rust) in fields {
        text.push_str(&format!("    {} {field};\n", scalar_names(rust)[language]));
    }
    text.push_str(&format!(
        "}};\nstatic_assert(sizeof({name}) == {size}, \"layout of {name}\");\n"
    ));
    text
}

/// Declares a kernel's argument struct once, for Rust, Metal and CUDA.
///
/// Fields are `u32`, `i32`, `f32`, `u64` or `i64`. The struct has no padding: a layout with a gap
/// does not compile. The crate that uses it depends on `bytemuck` with its `derive` feature.
///
/// ```
/// use kiln_core::KernelArgs;
/// kiln_core::kernel_args! {
///     /// Arguments of a norm.
///     pub struct NormArgs {
///         /// Row stride in elements.
///         stride: u64,
///         /// Row length.
///         dim: u32,
///         /// Added to the mean of squares.
///         eps: f32,
///     }
/// }
/// assert_eq!(size_of::<NormArgs>(), 16);
/// assert!(NormArgs::msl().contains("ulong stride;"));
/// assert!(NormArgs::cuda().contains("static_assert(sizeof(NormArgs) == 16"));
/// ```
#[macro_export]
macro_rules! kernel_args {
    (
        $(#[$meta:meta])*
        $vis:vis struct $Name:ident { $($(#[$fm:meta])* $field:ident: $Type:ident,)* }
    ) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        $vis struct $Name { $($(#[$fm])* pub $field: $Type,)* }

        const _: () = {
            $($crate::kernel_args::scalar_names(stringify!($Type));)*
        };

        impl $crate::KernelArgs for $Name {
            fn msl() -> String {
                let fields = &[$((stringify!($field), stringify!($Type))),*];
                let size = size_of::<Self>();
                $crate::kernel_args::declaration(stringify!($Name), size, fields, 0)
            }

            fn cuda() -> String {
                let fields = &[$((stringify!($field), stringify!($Type))),*];
                let size = size_of::<Self>();
                $crate::kernel_args::declaration(stringify!($Name), size, fields, 1)
            }
        }
    };
}
