//! What malloc and the program's own file take of memory.

use std::fs::File;
use std::io::BufReader;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use nix::libc;
use procfs_core::FromBufRead;
use procfs_core::process::{MMPermissions, MMapPath, MemoryMap, MemoryMaps};

/// Has malloc take all memory from one arena: an arena for each thread costs memory that no other thread uses again, and
/// our threads make system calls, and few calls of malloc. Before there are threads.
pub fn one_malloc_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number. It fails only for values that are not known, and then nothing is changed.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back what work has left: free memory of malloc, and the pages of the program's own file, which are read from the
/// page cache again when they are needed.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: returns free pages only.
    unsafe {
        libc::malloc_trim(0);
    }
    static OF_FILE: OnceLock<Vec<Range<usize>>> = OnceLock::new();
    for range in OF_FILE.get_or_init(mappings) {
        // SAFETY: the pages are of a private mapping of a file, cannot be written, and none of them was changed before
        // that (relocations), so they are as the file is. What is touched again is mapped again.
        unsafe {
            libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED);
        }
    }
}

/// The mappings of the program that are as in its file. They stay where they are as long as it runs.
fn mappings() -> Vec<Range<usize>> {
    let exe = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    let smaps = File::open("/proc/self/smaps").map(BufReader::new);
    let maps = smaps.ok().and_then(|smaps| MemoryMaps::from_buf_read(smaps).ok());
    let of_file = |maps: MemoryMaps| maps.iter().filter_map(|map| of_file(map, &exe)).collect();
    maps.map_or_else(Vec::new, of_file)
}

/// Where a mapping of the program is, if all of its pages are as in the file and stay so (proc(5), /proc/pid/smaps).
fn of_file(map: &MemoryMap, exe: &Path) -> Option<Range<usize>> {
    let of_exe = matches!(&map.pathname, MMapPath::Path(path) if path == exe);
    let private = map.perms.contains(MMPermissions::PRIVATE) && !map.perms.contains(MMPermissions::WRITE);
    let none = |what| map.extension.map.get(what) == Some(&0);
    let start = usize::try_from(map.address.0).ok()?;
    let end = usize::try_from(map.address.1).ok()?;
    (of_exe && private && none("Anonymous") && none("Swap")).then_some(start..end)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_what_is_as_in_the_file_is_given_back() {
        let map = |line: &str, anonymous: &str| format!("{line}\nAnonymous: {anonymous} kB\nSwap: 0 kB\n");
        let smaps = [
            map("1000-2000 r--p 00000000 fe:00 12                         /bin/x y", "0"),
            map("2000-5000 r-xp 00001000 fe:00 12                         /bin/x y", "0"),
            // Relocated, and then made read-only.
            map("5000-6000 r--p 00004000 fe:00 12                         /bin/x y", "4"),
            map("6000-7000 rw-p 00005000 fe:00 12                         /bin/x y", "0"),
            map(
                "7000-8000 r-xp 00000000 fe:00 13                         /lib/libc.so",
                "0",
            ),
            map("8000-9000 r-xs 00000000 fe:00 12                         /bin/x y", "0"),
            map("9000-a000 r-xp 00000000 00:00 0                          [vdso]", "0"),
            map("a000-b000 rw-p 00000000 00:00 0 ", "0"),
            "b000-c000 r-xp 00006000 fe:00 12                         /bin/x y\n".to_owned(),
        ]
        .concat();
        let maps = MemoryMaps::from_buf_read(smaps.as_bytes()).unwrap();
        let ranges: Vec<_> = maps
            .iter()
            .filter_map(|map| of_file(map, Path::new("/bin/x y")))
            .collect();
        assert_eq!(ranges, [0x1000..0x2000, 0x2000..0x5000]);
    }

    #[test]
    fn memory_that_was_given_back_is_as_before() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let rest = status.split_once("RssFile:").unwrap().1;
            rest.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        let gives_back = || {
            let before = resident();
            give_back();
            resident() < before
        };
        // Other tests run beside this one and touch their code again.
        assert!((0..50).any(|_| gives_back()));
        assert_eq!(format!("{:?}", vec![1.5, 2.5]), "[1.5, 2.5]", "code runs on");
    }
}
