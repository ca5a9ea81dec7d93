//! The Linux of Windows (WSL2), whose GPUs pin less host memory than there is.
//!
//! NVIDIA's guide to CUDA on WSL names pinned memory as limited and gives no number; users report half of the memory
//! that Windows gives the system. A plan counts with that, and a setting says otherwise.

use std::path::Path;
use sysinfo::System;

/// Bytes of host memory that a GPU pins at most; none: no such limit is known here.
pub(super) fn pinned_limit() -> Option<u64> {
    is_wsl(Path::new("/")).then(|| {
        let mut system = System::new();
        system.refresh_memory();
        system.total_memory() / 2
    })
}

/// True if Windows runs the kernel and passes its GPUs on; `root` stands in place of "/".
fn is_wsl(root: &Path) -> bool {
    let release = std::fs::read_to_string(root.join("proc/sys/kernel/osrelease")).unwrap_or_default();
    release.to_ascii_lowercase().contains("microsoft") && root.join("dev/dxg").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_and_the_device_of_windows_are_told_apart_from_others() {
        for (release, has_device, expected) in [
            (Some("5.15.153.1-microsoft-standard-WSL2\n"), true, true),
            (Some("4.4.0-19041-Microsoft\n"), false, false),
            (Some("6.8.0-41-generic\n"), true, false),
            (None, true, false),
        ] {
            let root = tempfile::tempdir().unwrap();
            let (kernel, devices) = (root.path().join("proc/sys/kernel"), root.path().join("dev"));
            std::fs::create_dir_all(&kernel).unwrap();
            std::fs::create_dir_all(&devices).unwrap();
            if let Some(release) = release {
                std::fs::write(kernel.join("osrelease"), release).unwrap();
            }
            if has_device {
                std::fs::write(devices.join("dxg"), "").unwrap();
            }
            assert_eq!(is_wsl(root.path()), expected, "{release:?}");
        }
    }
}
