//! Functions compiled once for each width of vectors and chosen by the processor at run time.

/// `fn name<'a>(arguments)`: the body is compiled for every instruction set that `pulp` knows. A closure given to
/// `Arch::dispatch` may stay outside the function that has the wider vectors; the structure made here does not.
macro_rules! vectorized {
    ($(#[$doc:meta])* $vis:vis fn $name:ident<$life:lifetime>($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        vectorized! { $(#[$doc])* $vis fn $name<$life>($($arg: $type),*) -> () $body }
    };
    ($(#[$doc:meta])* $vis:vis fn $name:ident<$life:lifetime>($($arg:ident: $type:ty),* $(,)?) -> $out:ty $body:block) => {
        $(#[$doc])*
        $vis fn $name<$life>($($arg: $type),*) -> $out {
            struct Operation<$life> {
                $($arg: $type),*
            }
            impl<$life> pulp::WithSimd for Operation<$life> {
                type Output = $out;
                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _: S) -> $out {
                    let Operation { $($arg),* } = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Operation { $($arg),* })
        }
    };
}

pub(in crate::backend::cpu) use vectorized;
