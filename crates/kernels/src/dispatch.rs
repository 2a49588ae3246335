//! Runtime dispatch: [`Kernels`], a table of functions chosen once for the processor.

#[cfg(target_arch = "aarch64")]
use std::arch::is_aarch64_feature_detected;

use super::activations::{ActivationBlock, quantize};
use super::attention::{self, AttentionTile};
use super::ceiling;
use super::kv_memory::{self, Writing};
use super::pack::Format;
use super::product::{Part, product};
use super::scalar::Scalar;
use super::softmax;
use super::swiglu::{self, SwigluPart};
use super::vector;
#[cfg(any(test, target_arch = "x86_64"))]
use super::winograd;

/// The processor families with kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Any processor.
    Scalar,
    /// AVX2, FMA and F16C: x86-64 since about 2013.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX2 with AVX-VNNI: Intel since Alder Lake, AMD since Zen 5.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// AVX-512 with VNNI: Intel since Ice Lake (servers), AMD since Zen 4.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 with paired products (`winograd.rs`), which are faster on AMD processors: these
    /// add on twice as many ports as they multiply on.
    #[cfg(target_arch = "x86_64")]
    Avx512Paired,
    /// 64-bit ARM with the dot product extension.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
    /// 64-bit ARM.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// The paired products in plain code, for tests.
    #[cfg(test)]
    ScalarPaired,
}

/// Features by name, and whether this processor has them.
macro_rules! detected {
    ($detected:ident: $($feature:tt),*) => {
        &[$(($feature, $detected!($feature))),*]
    };
}

impl Isa {
    /// Every family of this architecture, the fastest first.
    pub const ALL: &'static [Self] = &[
        #[cfg(target_arch = "x86_64")]
        Self::Avx512Paired,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
        #[cfg(target_arch = "x86_64")]
        Self::AvxVnni,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "aarch64")]
        Self::NeonDot,
        #[cfg(target_arch = "aarch64")]
        Self::Neon,
        Self::Scalar,
    ];

    /// The features that this family's kernels are compiled with and this processor lacks.
    pub(crate) fn missing_features(self) -> Vec<&'static str> {
        let features: &[(&str, bool)] = match self {
            Self::Scalar => &[],
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => detected!(is_x86_feature_detected: "avx2", "fma", "f16c"),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => detected!(is_x86_feature_detected: "avxvnni", "avx2", "fma", "f16c"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Paired => detected!(
                is_x86_feature_detected:
                "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx2", "fma", "f16c"
            ),
            #[cfg(test)]
            Self::ScalarPaired => &[],
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot => detected!(is_aarch64_feature_detected: "neon", "dotprod"),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => detected!(is_aarch64_feature_detected: "neon"),
        };
        let missing = features.iter().filter(|(_, detected)| !detected);
        missing.map(|(name, _)| *name).collect()
    }

    /// Whether this family is the fastest choice on a processor that can run it.
    fn suits(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Paired => is_amd(),
            _ => true,
        }
    }
}

/// Whether the processor is AMD's or Hygon's, by the vendor string of CPUID leaf 0.
#[cfg(target_arch = "x86_64")]
fn is_amd() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    let name = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
    matches!(name.as_flattened(), b"AuthenticAMD" | b"HygonGenuine")
}

/// The kernels of one family, which this processor can run.
#[derive(Clone, Copy)]
pub struct Kernels {
    isa: Isa,
    pub(super) table: &'static Table,
}

impl Kernels {
    /// The fastest kernels for this processor.
    pub fn best() -> Self {
        Isa::ALL
            .iter()
            .filter(|isa| isa.suits())
            .find_map(|isa| Self::of(*isa))
            .unwrap_or(Self {
                isa: Isa::Scalar,
                table: &scalar::TABLE,
            })
    }

    /// The kernels of a family, if this processor can run them.
    pub fn of(isa: Isa) -> Option<Self> {
        if !isa.missing_features().is_empty() {
            return None;
        }
        let table = match isa {
            Isa::Scalar => &scalar::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &avx2::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => &avx_vnni::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &avx512::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Paired => &avx512_paired::TABLE,
            #[cfg(test)]
            Isa::ScalarPaired => &scalar_paired::TABLE,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => &neon_dot::TABLE,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => &neon::TABLE,
        };
        Some(Self { isa, table })
    }

    pub fn isa(self) -> Isa {
        self.isa
    }
}

/// A product function for each [`Format`].
type Products = [unsafe fn(&Part<'_>); 10];

/// The kernels' entry points. Each has the safety requirements of the generic function of its name; the
/// processor's features were checked when the table was chosen.
pub(super) struct Table {
    pub(super) product: Products,
    /// For parts of at least [`winograd::MIN_TOKENS`] tokens: [`winograd::product`] if the family has
    /// it.
    pub(super) product_many_tokens: Products,
    /// Tokens × groups of a tile: work is split at multiples of it.
    pub(super) tile: (usize, usize),
    pub(super) quantize: unsafe fn(&[f32], &mut [ActivationBlock]),
    pub(super) rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    pub(super) add: unsafe fn(&mut [f32], &[f32]),
    pub(super) swiglu: unsafe fn(&SwigluPart<'_>),
    pub(super) rope_neox: unsafe fn(&mut [f32], &[f32], &[f32]),
    pub(super) softmax_weights: unsafe fn(&[f32], f32, f32, &mut [u64]),
    pub(super) prepare: unsafe fn(&AttentionTile<'_>),
    pub(super) attend: unsafe fn(&AttentionTile<'_>),
    pub(super) finish: unsafe fn(&AttentionTile<'_>),
    pub(super) write: unsafe fn(&Writing<'_>),
    pub(super) read_all: unsafe fn(&[f32]),
    pub(super) multiply_add_all: unsafe fn(usize),
}

/// Compiles the generic kernels for one family: a module with its table.
macro_rules! family {
    ($(#[$attribute:meta])* $name:ident, $simd:ty, $(enable = $features:literal)?) => {
        $(#[$attribute])*
        mod $name {
            use super::*;

            const PRODUCT: Products = [
                multiply::<{ Format::U4 as u8 }>,
                multiply::<{ Format::U4Min as u8 }>,
                multiply::<{ Format::U4Super as u8 }>,
                multiply::<{ Format::I8 as u8 }>,
                multiply::<{ Format::U8Min as u8 }>,
                multiply::<{ Format::U8Super as u8 }>,
                multiply::<{ Format::U8Half as u8 }>,
                multiply::<{ Format::F16 as u8 }>,
                multiply::<{ Format::Bf16 as u8 }>,
                multiply::<{ Format::F32 as u8 }>,
            ];

            pub(super) const TABLE: Table = Table {
                product: PRODUCT,
                product_many_tokens: PRODUCT,
                tile: <$simd as super::super::simd::Simd>::TILE,
                quantize: quantize_values,
                rms_norm,
                add,
                swiglu,
                rope_neox,
                softmax_weights,
                prepare,
                attend,
                finish,
                write,
                read_all,
                multiply_add_all,
            };

            $(#[target_feature(enable = $features)])?
            unsafe fn multiply<const FORMAT: u8>(part: &Part<'_>) {
                // SAFETY: as the callee's, which this function passes on to its caller.
                unsafe { product::<$simd, FORMAT>(part) }
            }

            family!(@forward $simd, $($features)?,
                quantize_values = quantize(values: &[f32], blocks: &mut [ActivationBlock]);
                rms_norm = vector::rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]);
                add = vector::add(x: &mut [f32], y: &[f32]);
                swiglu = swiglu::swiglu(part: &SwigluPart<'_>);
                rope_neox = vector::rope_neox(x: &mut [f32], cos: &[f32], sin: &[f32]);
                softmax_weights = softmax::softmax_weights(logits: &[f32], max: f32, inverse_temperature: f32, weights: &mut [u64]);
                prepare = attention::prepare(tile: &AttentionTile<'_>);
                attend = attention::attend(tile: &AttentionTile<'_>);
                finish = attention::finish(tile: &AttentionTile<'_>);
                write = kv_memory::write(writing: &Writing<'_>);
                read_all = ceiling::read_all(values: &[f32]);
                multiply_add_all = ceiling::multiply_add_all(steps: usize);
            );
        }
    };
    (@forward $simd:ty, , $($name:ident = $($callee:ident)::+($($arg:ident: $type:ty),*);)*) => {
        $(
            unsafe fn $name($($arg: $type),*) {
                // SAFETY: as the callee's, which this function passes on to its caller.
                unsafe { $($callee)::+::<$simd>($($arg),*) }
            }
        )*
    };
    (@forward $simd:ty, $features:literal, $($name:ident = $($callee:ident)::+($($arg:ident: $type:ty),*);)*) => {
        $(
            #[target_feature(enable = $features)]
            unsafe fn $name($($arg: $type),*) {
                // SAFETY: as the callee's, which this function passes on to its caller.
                unsafe { $($callee)::+::<$simd>($($arg),*) }
            }
        )*
    };
}

family!(scalar, Scalar,);
family!(
    #[cfg(target_arch = "x86_64")]
    avx512,
    super::super::avx512::Avx512,
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"
);
family!(
    #[cfg(target_arch = "x86_64")]
    avx_vnni,
    super::super::avx2::Avx2<true>,
    enable = "avxvnni,avx2,fma,f16c"
);
family!(
    #[cfg(target_arch = "x86_64")]
    avx2,
    super::super::avx2::Avx2<false>,
    enable = "avx2,fma,f16c"
);
family!(
    #[cfg(target_arch = "aarch64")]
    neon_dot,
    super::super::neon::Neon<true>,
    enable = "neon,dotprod"
);
family!(
    #[cfg(target_arch = "aarch64")]
    neon,
    super::super::neon::Neon<false>,
    enable = "neon"
);

/// A family's table with paired products for nibbles and many tokens.
macro_rules! paired_family {
    ($(#[$attribute:meta])* $name:ident of $family:ident, $simd:ty, $(enable = $features:literal)?) => {
        $(#[$attribute])*
        mod $name {
            use super::*;

            pub(super) static TABLE: Table = {
                let mut table = super::$family::TABLE;
                table.product_many_tokens[Format::U4 as usize] = multiply::<{ Format::U4 as u8 }>;
                table.product_many_tokens[Format::U4Min as usize] = multiply::<{ Format::U4Min as u8 }>;
                table.product_many_tokens[Format::U4Super as usize] =
                    multiply::<{ Format::U4Super as u8 }>;
                table
            };

            $(#[target_feature(enable = $features)])?
            unsafe fn multiply<const FORMAT: u8>(part: &Part<'_>) {
                // SAFETY: as the callee's, which this function passes on to its caller.
                unsafe { winograd::product::<$simd, FORMAT>(part) }
            }
        }
    };
}

paired_family!(
    #[cfg(test)]
    scalar_paired of scalar,
    Scalar,
);
paired_family!(
    #[cfg(target_arch = "x86_64")]
    avx512_paired of avx512,
    super::super::avx512::Avx512,
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"
);
