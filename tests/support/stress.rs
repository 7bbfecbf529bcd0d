//! Short versions for every day, and long ones for `STRESS=1`.

/// Whether the long versions are asked for.
pub fn is_stress() -> bool {
    std::env::var_os("STRESS").is_some_and(|value| value == "1")
}

/// One number for every day, and one for `STRESS=1`.
pub fn count(usual: usize, stress: usize) -> usize {
    if is_stress() { stress } else { usual }
}
