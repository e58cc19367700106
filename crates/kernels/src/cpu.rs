//! Which instructions the CPU has, which of them kernels use, and how code is compiled for each
//! instruction set.

use std::fmt;
use std::sync::OnceLock;

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
    isa: Isa,
    bf16: bool,
    /// Whether other devices multiply bf16.
    bf16_elsewhere: bool,
}

impl Cpu {
    /// Chooses the best instruction set of this CPU at `precision`.
    ///
    /// # Errors
    /// If `precision` is bf16 and the CPU cannot multiply bf16.
    pub fn new(precision: Precision) -> Result<Cpu, String> {
        Cpu::on(Isa::detect(), precision)
    }

    /// Makes the choice for a CPU whose best instruction set is `isa`.
    fn on(isa: Isa, precision: Precision) -> Result<Cpu, String> {
        match (precision, isa) {
            (Precision::F32, _) => Ok(Cpu::with(isa, false)),
            _ if isa.has_bf16() => Ok(Cpu::with(isa, true)),
            (Precision::Auto, _) => Ok(Cpu { bf16_elsewhere: true, ..Cpu::with(isa, false) }),
            (Precision::Bf16, _) => Err(format!(
                "precision = bf16 needs a processor with avx512_bf16, and this one has {isa}; use auto or f32"
            )),
        }
    }

    /// Returns every choice that this CPU supports; tests run with each of them.
    pub fn all() -> Vec<Cpu> {
        let best = Isa::detect();
        let sets = [Isa::Amx, Isa::Avx512Bf16, Isa::Avx512, Isa::Avx2, Isa::Portable];
        let has = sets.into_iter().filter(|&isa| isa >= best);
        let bf16s = has.clone().filter(|isa| isa.has_bf16()).map(|isa| Cpu::with(isa, true));
        bf16s.chain(has.map(|isa| Cpu::with(isa, false))).collect()
    }

    fn with(isa: Isa, bf16: bool) -> Cpu {
        Cpu { isa, bf16, bf16_elsewhere: bf16 }
    }

    /// Returns the best choice of this CPU: bf16 products if it has them.
    pub fn best() -> Cpu {
        Cpu { bf16_elsewhere: true, ..Cpu::with(Isa::detect(), Isa::detect().has_bf16()) }
    }

    /// Returns whether products are of bf16.
    pub fn bf16(self) -> bool {
        self.bf16
    }

    /// Returns whether products on other devices are of bf16, which is so unless f32 was requested.
    pub fn bf16_elsewhere(self) -> bool {
        self.bf16_elsewhere
    }

    /// Returns the same instruction set with products of f32.
    pub fn in_f32(self) -> Cpu {
        Cpu::with(self.isa, false)
    }

    /// Returns the instruction set.
    pub fn isa(self) -> Isa {
        self.isa
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", if self.bf16 { "bf16" } else { "f32" }, self.isa)
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

    /// Returns the best instruction set of this CPU.
    #[cfg(target_arch = "x86_64")]
    pub fn detect() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(Isa::probe)
    }

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

    /// Runs `body`, compiled for this instruction set.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[allow(unsafe_code)]
    pub fn run<B: Body>(self, body: B) -> B::Output {
        debug_assert!(self >= Isa::detect(), "{self} is not on this processor");
        match self {
            // SAFETY: a `Cpu` is only made with a set that `detect` found, or one that the found
            // set includes.
            Isa::Amx | Isa::Avx512Bf16 => unsafe { x86::avx512_bf16(body) },
            // SAFETY: as above.
            Isa::Avx512 => unsafe { x86::avx512(body) },
            // SAFETY: as above.
            Isa::Avx2 => unsafe { x86::avx2(body) },
            Isa::Portable => body.run(),
        }
    }

    /// Returns the best instruction set of this CPU.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn detect() -> Isa {
        Isa::Portable
    }

    /// Runs `body`, compiled for this instruction set.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn run<B: Body>(self, body: B) -> B::Output {
        body.run()
    }
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
        $visible fn $name $(<$($generic: $bound),+>)? (isa: $crate::cpu::Isa, $($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body $(<$($generic: $bound),+>)? ($($arg: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2")]
            fn avx512 $(<$($generic: $bound),+>)? ($($arg: $type),*) $(-> $result)? { body($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,bmi2")]
            fn avx2 $(<$($generic: $bound),+>)? ($($arg: $type),*) $(-> $result)? { body($($arg),*) }
            match isa {
                // SAFETY: a `Cpu` holds no instruction set that the CPU lacks.
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
            assert_eq!(Cpu::on(isa, Precision::Auto), Ok(Cpu { isa, bf16: has, bf16_elsewhere: true }));
            assert_eq!(Cpu::on(isa, Precision::F32), Ok(Cpu::with(isa, false)));
            match Cpu::on(isa, Precision::Bf16) {
                Ok(cpu) => assert!(has && cpu.bf16()),
                Err(reason) => assert!(!has && reason.contains(&isa.to_string()), "{reason}"),
            }
        }
    }
}
