//! The role of a parameter, declared where the parameter is created. Weight decay and 16-bit
//! storage depend on the role, never on a name.

use burn::module::ParamId;

/// The role of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A matrix or filter inside a block: it has weight decay, and 16 bits are enough for it (paper
    /// §D.2).
    Matrix,
    /// A matrix like [`Role::Matrix`] that is divided among ranks by rows: the second of an MLP (paper
    /// §E.1).
    RowMatrix,
    /// A matrix next to pixels, tokens, codes or embeddings: it has weight decay and keeps 32 bits.
    Head,
    /// Learned input vectors (tokens, positions, special tokens): they have no weight decay and
    /// keep 32 bits.
    Embedding,
    /// Gains, biases and a temperature: they have no weight decay and keep 32 bits.
    Vector,
}

/// The number of low bits of a parameter's id that store its role. Burn copies the id with the
/// parameter.
const BITS: u32 = 3;

impl Role {
    const ALL: [Role; 5] = [Role::Matrix, Role::RowMatrix, Role::Head, Role::Embedding, Role::Vector];

    /// Creates an id for a new parameter of this role.
    pub(super) fn id(self) -> ParamId {
        ParamId::from(ParamId::new().val() << BITS | self as u64)
    }

    /// The role of a parameter that [`Init`](super::Init) created.
    pub(super) fn from_id(id: ParamId) -> Role {
        Role::ALL.get((id.val() & ((1 << BITS) - 1)) as usize).copied().unwrap_or(Role::Vector)
    }

    /// Whether AdamW applies weight decay to such a parameter.
    pub fn decays(self) -> bool {
        match self {
            Role::Matrix | Role::RowMatrix | Role::Head => true,
            Role::Embedding | Role::Vector => false,
        }
    }

    /// Whether such a parameter and its optimizer state may be stored in 16 bits.
    pub fn may_be_small(self) -> bool {
        match self {
            Role::Matrix | Role::RowMatrix => true,
            Role::Head | Role::Embedding | Role::Vector => false,
        }
    }

    /// The dimension along which ranks divide such a parameter of `n_dims` dimensions.
    pub fn shard_axis(self, n_dims: usize) -> usize {
        match self {
            Role::Matrix | Role::Head | Role::Embedding => n_dims - 1,
            Role::RowMatrix | Role::Vector => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::tensor::Device;

    use super::*;
    use crate::nn::{Conv2d, Init, LayerNorm, Linear, export, import, parameters};

    fn roles(module: &impl Module) -> Vec<Role> {
        parameters(module).iter().map(|parameter| parameter.role).collect()
    }

    #[test]
    fn roles_survive_copies_imports_and_training() {
        for role in Role::ALL {
            assert_eq!(Role::from_id(role.id()), role);
        }
        let device = Device::flex();
        let init = &mut Init::new(1, &device);
        let linear = Linear::new(init, [2, 3], 0.1);
        let linear = import(linear.clone(), &export(&linear)).unwrap().train();
        assert_eq!(roles(&linear), [Role::Matrix, Role::Vector]);
        assert_eq!(roles(&Linear::head(init, [2, 3], 0.1)), [Role::Head, Role::Vector]);
        assert_eq!(roles(&Conv2d::head(init, [2, 3], 1)), [Role::Head, Role::Vector]);
        assert_eq!(roles(&LayerNorm::new(init, 2)), [Role::Vector, Role::Vector]);
    }
}
