//! More than one device (paper §2.5, §E): what it takes. So far the plan.

pub mod plan;
