//! Short runs by default, and long ones with `STRESS=1`.

/// Returns whether the long runs are on.
pub fn is_stress() -> bool {
    std::env::var_os("STRESS").is_some_and(|value| value == "1")
}

/// Returns `usual`, or `stress` with `STRESS=1`.
pub fn count(usual: usize, stress: usize) -> usize {
    if is_stress() { stress } else { usual }
}
