//! Which instructions the CPU has, which of them kernels use, and how code is compiled for each
//! instruction set.

use std::fmt;
use std::sync::OnceLock;

use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};

#[cfg(target_arch = "x86_64")]
use crate::gemm::amx;

/// The dtype of products. Sums are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bf16 if the CPU multiplies it, else f32.
    #[default]
    Auto,
    /// f32 everywhere.
    F32,
    /// bf16, or an error if the CPU cannot multiply it.
    Bf16,
}

/// An instruction set that kernels are compiled for; the best is first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// AVX-512 with bf16 products in tile registers.
    Amx,
    /// AVX-512 with `vdpbf16ps` and `vpdpbusd`.
    Avx512Bf16,
    /// AVX-512: F, BW, DQ and VL.
    Avx512,
    /// AVX2 and FMA.
    Avx2,
    /// What the compiler may assume of every CPU of its target.
    Portable,
}

/// The instruction set and precision that kernels use. It is chosen once and passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu {
    isa: Supported,
    bf16: bool,
    /// What other devices multiply: f32, bf16 or f16.
    elsewhere: FloatDType,
}

impl Cpu {
    /// Chooses the best instruction set of this CPU at `precision`.
    ///
    /// # Errors
    /// If `precision` is bf16 and the CPU cannot multiply bf16.
    pub fn new(precision: Precision) -> Result<Cpu, String> {
        let isa = Supported::best();
        let [bf16, elsewhere] = multiplies_bf16(isa.isa(), precision)?;
        Ok(Cpu { isa, bf16, elsewhere: bf16_or_f32(elsewhere) })
    }

    /// Returns every choice that this CPU supports; tests run with each of them.
    pub fn all() -> Vec<Cpu> {
        let has = Supported::all();
        let bf16s = has.iter().filter(|isa| isa.isa().has_bf16()).map(|&isa| Cpu::with(isa, true));
        bf16s.chain(has.iter().map(|&isa| Cpu::with(isa, false))).collect()
    }

    fn with(isa: Supported, bf16: bool) -> Cpu {
        Cpu { isa, bf16, elsewhere: bf16_or_f32(bf16) }
    }

    /// Returns the best choice of this CPU: bf16 products if it has them.
    pub fn best() -> Cpu {
        let isa = Supported::best();
        Cpu { elsewhere: FloatDType::BF16, ..Cpu::with(isa, isa.isa().has_bf16()) }
    }

    /// Returns whether products are of bf16.
    pub fn bf16(self) -> bool {
        self.bf16
    }

    /// Returns what other devices multiply: bf16 unless f32 was requested, or what
    /// [`Cpu::with_elsewhere`] chose.
    pub fn elsewhere(self) -> FloatDType {
        self.elsewhere
    }

    /// Returns the same choice for this CPU, and f32, bf16 or f16 for products on other devices.
    pub fn with_elsewhere(self, elsewhere: FloatDType) -> Cpu {
        Cpu { elsewhere, ..self }
    }

    /// Returns the same instruction set with products of f32.
    pub fn in_f32(self) -> Cpu {
        Cpu::with(self.isa, false)
    }

    /// Returns the instruction set.
    pub fn isa(self) -> Isa {
        self.isa.isa()
    }

    /// Returns the proof that this CPU has the instruction set.
    pub fn supported(self) -> Supported {
        self.isa
    }
}

fn bf16_or_f32(is_bf16: bool) -> FloatDType {
    if is_bf16 { FloatDType::BF16 } else { FloatDType::F32 }
}

/// Whether products on a CPU whose best instruction set is `isa`, and on other devices, are of bf16
/// at `precision`.
///
/// # Errors
/// If `precision` is bf16 and `isa` does not multiply it.
fn multiplies_bf16(isa: Isa, precision: Precision) -> Result<[bool; 2], String> {
    match precision {
        Precision::F32 => Ok([false; 2]),
        Precision::Auto => Ok([isa.has_bf16(), true]),
        Precision::Bf16 if isa.has_bf16() => Ok([true; 2]),
        Precision::Bf16 => Err(format!(
            "precision = bf16 needs a processor with avx512_bf16, and this one has {isa}; use auto or f32"
        )),
    }
}

/// An instruction set that this CPU has. Only detection makes values of this type, so code that is
/// given one may run the instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Supported(Isa);

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", if self.bf16 { "bf16" } else { "f32" }, self.isa())
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Amx => "amx_bf16",
            Isa::Avx512Bf16 => "avx512_bf16",
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Portable => "portable",
        })
    }
}

/// Code that is compiled once for each instruction set.
pub trait Body {
    /// The result of the code.
    type Output;

    /// Runs the code. Every implementation needs `#[inline(always)]`; without it the code would be
    /// compiled for the baseline CPU.
    fn run(self) -> Self::Output;
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! One entry point per instruction set, for [`super::Isa::run`].

    use super::Body;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,bmi2")]
    pub(super) fn avx512_bf16<B: Body>(body: B) -> B::Output {
        body.run()
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2")]
    pub(super) fn avx512<B: Body>(body: B) -> B::Output {
        body.run()
    }

    #[target_feature(enable = "avx2,fma,bmi2")]
    pub(super) fn avx2<B: Body>(body: B) -> B::Output {
        body.run()
    }
}

impl Isa {
    /// Returns whether the instruction set multiplies bf16.
    pub fn has_bf16(self) -> bool {
        matches!(self, Isa::Amx | Isa::Avx512Bf16)
    }
}

impl Supported {
    /// Returns the best instruction set of this CPU.
    pub fn best() -> Supported {
        static BEST: OnceLock<Isa> = OnceLock::new();
        Supported(*BEST.get_or_init(probe))
    }

    /// Returns all instruction sets of this CPU that kernels are compiled for. The best includes
    /// those after it.
    fn all() -> Vec<Supported> {
        let best = Supported::best().isa();
        let sets = [Isa::Amx, Isa::Avx512Bf16, Isa::Avx512, Isa::Avx2, Isa::Portable];
        sets.into_iter().filter(|&isa| isa >= best).map(Supported).collect()
    }

    /// Makes the proof without looking.
    ///
    /// # Safety
    /// This CPU must have the instruction set.
    #[allow(unsafe_code)]
    #[inline(always)]
    pub(crate) unsafe fn assume(isa: Isa) -> Supported {
        Supported(isa)
    }

    /// Returns which it is.
    #[inline(always)]
    pub fn isa(self) -> Isa {
        self.0
    }

    /// Runs `body`, compiled for this instruction set.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[allow(unsafe_code)]
    pub fn run<B: Body>(self, body: B) -> B::Output {
        match self.0 {
            // SAFETY: this CPU has the instruction set, since there is a `Supported` of it.
            Isa::Amx | Isa::Avx512Bf16 => unsafe { x86::avx512_bf16(body) },
            // SAFETY: as above.
            Isa::Avx512 => unsafe { x86::avx512(body) },
            // SAFETY: as above.
            Isa::Avx2 => unsafe { x86::avx2(body) },
            Isa::Portable => body.run(),
        }
    }

    /// Runs `body`, compiled for this instruction set.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn run<B: Body>(self, body: B) -> B::Output {
        body.run()
    }
}

/// Finds the best instruction set of this CPU.
#[cfg(target_arch = "x86_64")]
fn probe() -> Isa {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("bmi2");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    let bf16 = avx512 && is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512vnni");
    match (bf16 && amx::available(), bf16, avx512, avx2) {
        (true, ..) => Isa::Amx,
        (_, true, ..) => Isa::Avx512Bf16,
        (.., true, _) => Isa::Avx512,
        (.., true) => Isa::Avx2,
        _ => Isa::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn probe() -> Isa {
    Isa::Portable
}

/// Defines a function that is compiled once for each instruction set. Its first argument selects
/// the set.
///
/// The compiler vectorizes loops over slices in its body for that set. Functions that it calls must
/// be `#[inline(always)]`.
macro_rules! vectorized {
    ($(#[$attribute:meta])* $visible:vis fn $name:ident $([$($generic:ident: $bound:path),+])? ($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$attribute])*
        #[allow(clippy::too_many_arguments, unsafe_code)]
        $visible fn $name $(<$($generic: $bound),+>)? (isa: $crate::cpu::Supported, $($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body $(<$($generic: $bound),+>)? ($($arg: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2")]
            fn avx512 $(<$($generic: $bound),+>)? ($($arg: $type),*) $(-> $result)? { body($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,bmi2")]
            fn avx2 $(<$($generic: $bound),+>)? ($($arg: $type),*) $(-> $result)? { body($($arg),*) }
            match isa.isa() {
                // SAFETY: this CPU has the instruction set, since there is a `Supported` of it.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Isa::Amx | $crate::cpu::Isa::Avx512Bf16 | $crate::cpu::Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => body($($arg),*),
            }
        }
    };
}
pub(crate) use vectorized;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_chosen_if_available_and_refused_otherwise() {
        for isa in [Isa::Amx, Isa::Avx512Bf16, Isa::Avx512, Isa::Avx2, Isa::Portable] {
            let has = isa.has_bf16();
            assert_eq!(multiplies_bf16(isa, Precision::Auto), Ok([has, true]));
            assert_eq!(multiplies_bf16(isa, Precision::F32), Ok([false, false]));
            match multiplies_bf16(isa, Precision::Bf16) {
                Ok(bf16) => assert!(has && bf16 == [true, true]),
                Err(reason) => assert!(!has && reason.contains(&isa.to_string()), "{reason}"),
            }
        }
    }
}
