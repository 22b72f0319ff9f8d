//! Tables of inputs and the expected actions.
