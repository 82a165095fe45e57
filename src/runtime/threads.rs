//! Where the number of cores that this process may use is found out.

use std::{fs, path::Path};

/// Cores granted to this process: the smallest of the scheduler affinity and the control groups' CPU
/// quotas, rounded up to a whole core for quotas below one, else down. At least 1.
///
/// ONNX Runtime looks at the host's cores only, which throttles a container with a CPU limit.
pub fn granted_cores() -> usize {
    let affinity = std::thread::available_parallelism().map_or(1, usize::from);
    let quota = quota_v2(Path::new("/sys/fs/cgroup")).or_else(|| quota_v1(Path::new("/sys/fs/cgroup/cpu")));
    quota.map_or(affinity, |cores| affinity.min(whole(cores)))
}

fn whole(cores: f64) -> usize {
    (cores.floor() as usize).max(1)
}

fn quota_v2(root: &Path) -> Option<f64> {
    let text = fs::read_to_string(root.join("cpu.max")).ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    ratio(quota, period)
}

fn quota_v1(root: &Path) -> Option<f64> {
    let read = |name: &str| fs::read_to_string(root.join(name)).ok();
    ratio(read("cpu.cfs_quota_us")?.trim(), read("cpu.cfs_period_us")?.trim())
}

/// `quota / period`, or `None` for "max", "-1" and anything that is not a positive number.
fn ratio(quota: &str, period: &str) -> Option<f64> {
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_of_two_and_a_half_cores_grants_two() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cpu.max"), "250000 100000\n").unwrap();
        assert_eq!(quota_v2(folder.path()).map(whole), Some(2));
    }

    #[test]
    fn half_a_core_grants_one() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cpu.cfs_quota_us"), "50000").unwrap();
        fs::write(folder.path().join("cpu.cfs_period_us"), "100000").unwrap();
        assert_eq!(quota_v1(folder.path()).map(whole), Some(1));
    }

    #[test]
    fn no_limit_is_no_quota() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cpu.max"), "max 100000\n").unwrap();
        assert_eq!(quota_v2(folder.path()), None);
    }
}
