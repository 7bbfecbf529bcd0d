//! How much memory this process has, in bytes.

/// What is resident now.
pub fn resident() -> usize {
    status("VmRSS:")
}

/// The most that ever was resident.
pub fn peak() -> usize {
    status("VmHWM:")
}

fn status(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is there");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of the status");
    let kibibytes = line.trim().strip_suffix(" kB").expect("a number of kB");
    kibibytes.trim().parse::<usize>().expect("a number") * 1024
}
