//! Energy of the processors' packages, by the counters of RAPL (Running Average Power Limit) as Linux shows
//! them: `/sys/class/powercap/intel-rapl:N/energy_uj`, on AMD as well (kernel documentation,
//! `power/powercap/powercap.rst`). Only root may read them since CVE-2020-8694.

use std::fs;
use std::path::Path;

use super::kept::KeptFile;

/// The packages' counters.
#[derive(Debug)]
pub(super) struct Rapl {
    packages: Vec<Package>,
}

#[derive(Debug)]
struct Package {
    name: String,
    counter: KeptFile,
    /// The counter goes from 0 to this, and then starts again.
    range: u64,
    last: u64,
    /// Microjoules since the first reading.
    sum: u64,
}

impl Rapl {
    /// # Errors
    /// Why there is nothing to read.
    pub(super) fn open(sys: &Path) -> Result<Self, String> {
        let folder = sys.join("class/powercap");
        let entries = fs::read_dir(&folder)
            .map_err(|error| format!("failed to read {}: {error}", folder.display()))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        // `intel-rapl:0:0` is a part of `intel-rapl:0`.
        let is_zone = |name: &String| {
            let number = name.strip_prefix("intel-rapl:");
            number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        };
        let mut names: Vec<String> = names.filter(is_zone).collect();
        names.sort();
        let mut packages = Vec::new();
        for name in names {
            let zone = folder.join(&name);
            // The zone `psys` is the whole platform, and includes the packages.
            let kind = fs::read_to_string(zone.join("name")).unwrap_or_default();
            if kind.trim().starts_with("package") {
                packages.push(Package::open(name, &zone)?);
            }
        }
        match packages.is_empty() {
            true => Err(format!("{} has no package", folder.display())),
            false => Ok(Self { packages }),
        }
    }

    /// Joules of all packages since the counters were opened.
    ///
    /// # Errors
    /// If a counter can no longer be read.
    pub(super) fn joules(&mut self) -> Result<f64, String> {
        let mut microjoules = 0;
        for package in &mut self.packages {
            microjoules += package.advance()?;
        }
        Ok(microjoules as f64 / 1e6)
    }
}

impl Package {
    fn open(name: String, zone: &Path) -> Result<Self, String> {
        let path = zone.join("energy_uj");
        let failed = |error| format!("failed to read {}: {error}", path.display());
        let counter = KeptFile::open(&path).map_err(failed)?;
        let range = fs::read_to_string(zone.join("max_energy_range_uj")).ok();
        let mut package = Self {
            name,
            counter,
            range: range
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(u64::from(u32::MAX)),
            last: 0,
            sum: 0,
        };
        package.last = package.read()?;
        Ok(package)
    }

    fn read(&mut self) -> Result<u64, String> {
        let reading = self.counter.number();
        reading.ok_or_else(|| format!("{}: energy_uj is not readable as a number", self.name))
    }

    /// Microjoules since the first reading. The counter wraps after minutes at the soonest, so between two
    /// readings it does so at most once.
    fn advance(&mut self) -> Result<u64, String> {
        let now = self.read()?;
        let moved = match now.checked_sub(self.last) {
            Some(moved) => moved,
            None => (self.range.saturating_sub(self.last)).saturating_add(now),
        };
        self.last = now;
        self.sum += moved;
        Ok(self.sum)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::environment::host::testing::Tree;

    fn zone(tree: &Tree, zone: &str, name: &str, energy: &str) {
        let folder = format!("class/powercap/{zone}");
        tree.write(&format!("{folder}/name"), name);
        tree.write(&format!("{folder}/energy_uj"), energy);
        tree.write(&format!("{folder}/max_energy_range_uj"), "1000000\n");
    }

    #[test]
    fn packages_are_added_and_their_parts_are_not() {
        let tree = Tree::new();
        zone(&tree, "intel-rapl:0", "package-0\n", "900000\n");
        zone(&tree, "intel-rapl:1", "package-1\n", "0\n");
        zone(&tree, "intel-rapl:0:0", "core\n", "5\n");
        zone(&tree, "intel-rapl:2", "psys\n", "5\n");
        zone(&tree, "intel-rapl-mmio:0", "package-0\n", "5\n");
        let mut rapl = Rapl::open(tree.path()).expect("two packages");
        assert_eq!(rapl.joules(), Ok(0.0));
        zone(&tree, "intel-rapl:1", "package-1\n", "250000\n");
        assert_eq!(rapl.joules(), Ok(0.25));
        // From 0.9 J through the end of the range, 1 J, to 0.3 J.
        zone(&tree, "intel-rapl:0", "package-0\n", "300000\n");
        assert_eq!(rapl.joules(), Ok(0.65));
        assert_eq!(rapl.joules(), Ok(0.65));
        tree.write("class/powercap/intel-rapl:0/energy_uj", "garbage");
        let refused = rapl.joules().expect_err("no number");
        assert!(refused.starts_with("intel-rapl:0: "), "{refused}");
    }

    #[test]
    fn what_cannot_be_read_has_its_reason() {
        let tree = Tree::new();
        let reason = |tree: &Tree| Rapl::open(tree.path()).expect_err("nothing to read");
        assert!(reason(&tree).contains("class/powercap: "));
        zone(&tree, "intel-rapl:0", "psys", "5");
        assert!(reason(&tree).ends_with("class/powercap has no package"));
        zone(&tree, "intel-rapl:0", "package-0", "x");
        assert!(reason(&tree).contains("not readable as a number"));
        let counter = tree.path().join("class/powercap/intel-rapl:0/energy_uj");
        let secret = std::fs::Permissions::from_mode(0o000);
        std::fs::set_permissions(&counter, secret).expect("own file");
        // Root reads it all the same.
        if std::fs::File::open(&counter).is_err() {
            assert!(reason(&tree).to_lowercase().contains("permission denied"));
        }
        std::fs::remove_file(&counter).expect("there");
        assert!(reason(&tree).contains("energy_uj: No such file"));
    }
}
