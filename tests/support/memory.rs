//! The memory of this process, in bytes.

/// The resident memory now.
pub fn resident() -> usize {
    status("VmRSS:")
}

/// The highest resident memory so far.
pub fn peak() -> usize {
    status("VmHWM:")
}

fn status(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of the status");
    let kibibytes = line.trim().strip_suffix(" kB").expect("a number of kB");
    kibibytes.trim().parse::<usize>().expect("a number") * 1024
}
