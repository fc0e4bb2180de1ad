//! What the kernel says of the machine and of one process.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// Unit of times in `/proc/<pid>/stat`: `USER_HZ`, 100 on every architecture of Linux that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time of a process so far, in seconds.
#[must_use]
pub fn cpu_seconds(pid: u32) -> f64 {
    ticks(Path::new(&format!("/proc/{pid}/stat")))
}

/// User and system time of a `stat` file; 0 when the process or thread is gone.
fn ticks(stat: &Path) -> f64 {
    let text = std::fs::read_to_string(stat).unwrap_or_default();
    // The name, in parentheses, may hold spaces; fields 14 and 15 of proc(5) are the 12th and 13th after it.
    let Some((_, rest)) = text.rsplit_once(')') else { return 0.0 };
    let fields = rest.split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND
}

/// CPU time of a process's threads so far in seconds, those of one name together.
#[must_use]
pub fn thread_seconds(pid: u32) -> BTreeMap<String, f64> {
    let mut threads = BTreeMap::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        *threads.entry(name.trim().to_owned()).or_default() += ticks(&task.path().join("stat"));
    }
    threads
}

/// Resident memory of a process in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// All of it: `VmRSS`.
    pub resident: u64,
    /// The most so far: `VmHWM`.
    pub highest: u64,
    /// The part that is not of files, above all not the program: `RssAnon`.
    pub anonymous: u64,
}

impl std::fmt::Display for Memory {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let megabytes = super::figures::megabytes;
        let (resident, anonymous) = (megabytes(self.resident), megabytes(self.anonymous));
        write!(
            formatter,
            "VmRSS {resident} (RssAnon {anonymous}), VmHWM {}",
            megabytes(self.highest)
        )
    }
}

/// What a process holds now.
#[must_use]
pub fn memory_of(pid: u32) -> Memory {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let of = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kilobytes.unwrap_or(0) * 1024
    };
    Memory { resident: of("VmRSS:"), highest: of("VmHWM:"), anonymous: of("RssAnon:") }
}

/// A stretch of a process's life.
pub struct Stretch {
    pid: u32,
    began: Instant,
    cpu: f64,
    threads: BTreeMap<String, f64>,
}

impl Stretch {
    /// Begins now.
    #[must_use]
    pub fn begin(pid: u32) -> Self {
        let threads = thread_seconds(pid);
        Self { pid, began: Instant::now(), cpu: cpu_seconds(pid), threads }
    }

    /// Wall time so far, in seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// CPU time so far, in seconds.
    #[must_use]
    pub fn cpu_seconds(&self) -> f64 {
        cpu_seconds(self.pid) - self.cpu
    }

    /// The busiest threads so far, in percent of one core each.
    #[must_use]
    pub fn busiest(&self, count: usize) -> String {
        let seconds = self.seconds();
        let mut threads: Vec<(String, f64)> = thread_seconds(self.pid)
            .into_iter()
            .map(|(name, now)| {
                let before = self.threads.get(&name).copied().unwrap_or(0.0);
                (name, (now - before) / seconds * 100.0)
            })
            .collect();
        threads.sort_by(|left, right| right.1.total_cmp(&left.1));
        let shown = threads.iter().take(count).filter(|(_, percent)| *percent >= 0.5);
        shown.map(|(name, percent)| format!("{name} {percent:.0} %")).collect::<Vec<_>>().join(", ")
    }
}

/// CPU model, cores, memory, kernel and load average.
#[must_use]
pub fn describe_machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    let (cpu, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{} at {} MHz, {cores} cores, {} of memory, Linux {}, load average {}",
        field(&cpu, "model name"),
        field(&cpu, "cpu MHz"),
        field(&memory, "MemTotal"),
        read("/proc/sys/kernel/osrelease").trim(),
        load_average(),
    )
}

/// Of one, five and fifteen minutes.
#[must_use]
pub fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Bytes that the files below a folder take on the disk, as `du` counts them.
#[must_use]
pub fn disk_bytes(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;

    let mut bytes = 0;
    // What is deleted meanwhile takes nothing.
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes += disk_bytes(&entry.path()),
            Ok(metadata) => bytes += metadata.blocks() * 512,
            Err(_) => {}
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_a_thread_is_seen_under_its_name() {
        let stretch = Stretch::begin(std::process::id());
        let worker = std::thread::Builder::new().name("burner".to_owned()).spawn(|| {
            let began = Instant::now();
            let mut turns = 0_u64;
            while began.elapsed().as_millis() < 300 {
                turns = turns.wrapping_add(1);
            }
            (turns, thread_seconds(std::process::id()))
        });
        let (turns, threads) = worker.unwrap().join().unwrap();
        assert!(turns > 0);
        // The thread may have waited for a core most of the time.
        assert!(threads["burner"] > 0.0, "{threads:?}");
        assert!(stretch.cpu_seconds() > 0.0 && stretch.seconds() >= 0.3);
    }

    #[test]
    fn memory_and_disk_are_counted_in_bytes() {
        let memory = memory_of(std::process::id());
        let Memory { resident, highest, anonymous } = memory;
        assert!(anonymous > 100_000 && resident > anonymous && highest >= resident, "{memory}");
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/file"), vec![1; 100_000]).unwrap();
        let bytes = disk_bytes(dir.path());
        assert!((100_000..200_000).contains(&bytes), "{bytes}");
    }
}
