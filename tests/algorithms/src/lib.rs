//! Simulations of the algorithms in `policy`, by discrete events: the tests hold their properties with several seeds, and the examples
//! print the figures of docs/overload.md and docs/scale.md.

pub mod crowd;
pub mod fleet;
pub mod shedders;
pub mod simulator;
pub mod told;
