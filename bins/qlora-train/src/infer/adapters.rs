//! The adapters of a command: their names, their weights, and how they are put on the base.

use crate::error::Result;
use crate::refuse;
use std::path::{Path, PathBuf};

/// Way in which several adapters are put on the base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Together {
    /// Each alone, one after the other
    #[default]
    OneByOne,
    /// Their weighted sum, as one adapter
    Sum,
    /// All at once, of which each row takes the one that it names
    ByRow,
}

/// Adapters as they were given: `DIR`, `NAME=DIR`, `DIR:WEIGHT` or `NAME=DIR:WEIGHT`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adapters {
    pub dirs: Vec<PathBuf>,
    /// The name that each was given, if it was
    names: Vec<Option<String>>,
    weights: Vec<f64>,
    together: Together,
}

struct Given {
    name: Option<String>,
    dir: PathBuf,
    weight: Option<f64>,
}

impl Given {
    /// A text that is the path of something has neither name nor weight.
    fn parse(given: &Path) -> Result<Self> {
        let Some(text) = given.to_str().filter(|_| !given.exists()) else {
            return Ok(Self { name: None, dir: given.to_owned(), weight: None });
        };
        let (name, rest) = match text.split_once('=') {
            Some((name, dir)) if !name.trim().is_empty() && !name.contains('/') => (Some(name.trim().to_owned()), dir),
            _ => (None, text),
        };
        let (dir, weight) = match rest.rsplit_once(':') {
            Some((dir, "")) if !Path::new(rest).exists() => {
                refuse!("--adapter {text}: found no weight after the colon, expected {dir} or a number as in {dir}:0.5")
            }
            Some((dir, weight)) if !Path::new(rest).exists() => match weight.parse::<f64>() {
                Ok(weight) if !weight.is_finite() => {
                    refuse!("--adapter {text}: found a weight of {weight}, expected a finite number")
                }
                Ok(weight) => (dir, Some(weight)),
                Err(_) => (rest, None),
            },
            _ => (rest, None),
        };
        Ok(Self { name, dir: dir.into(), weight })
    }
}

impl Adapters {
    /// Adapters that are put on the base one after the other.
    pub fn one_by_one(dirs: Vec<PathBuf>) -> Self {
        let (names, weights) = (vec![None; dirs.len()], vec![1.0; dirs.len()]);
        Self { dirs, names, weights, together: Together::OneByOne }
    }

    /// Adapters as they were given. Where one has a weight they are added up, those without one with weight 1. Refused:
    /// a weight that is missing after its colon or not finite, a name that another has.
    pub fn parse<'a>(given: impl IntoIterator<Item = &'a PathBuf>) -> Result<Self> {
        let mut adapters = Self::default();
        for given in given {
            let Given { name, dir, weight } = Given::parse(given)?;
            if weight.is_some() {
                adapters.together = Together::Sum;
            }
            adapters.dirs.push(dir);
            adapters.names.push(name);
            adapters.weights.push(weight.unwrap_or(1.0));
        }
        // One directory may be named twice, as in a sum.
        adapters.check_names(|one, other| adapters.names[one].is_some() || adapters.names[other].is_some())?;
        Ok(adapters)
    }

    /// Makes each row take the one that it names. Refused: none, weights, and names that two
    /// have.
    pub fn by_row(self) -> Result<Self> {
        if self.dirs.is_empty() {
            refuse!("--adapter-by-row: found no adapter, expected those that the rows name: --adapter NAME=DIR");
        }
        if self.together == Together::Sum {
            refuse!("--adapter-by-row: found an adapter with a weight, expected none: weights add adapters up to one");
        }
        self.check_names(|_, _| true)?;
        Ok(Self { together: Together::ByRow, ..self })
    }

    /// Refuses a name that two have which may not share it.
    fn check_names(&self, differ: impl Fn(usize, usize) -> bool) -> Result<()> {
        for other in 0..self.dirs.len() {
            let name = self.name(other);
            if (0..other).any(|one| self.name(one) == name && differ(one, other)) {
                refuse!("--adapter: found {name:?} twice, expected a name of its own for each: --adapter NAME=DIR");
            }
        }
        Ok(())
    }

    /// Makes them one, their weighted sum. A single one of weight 1 stays as it is.
    pub fn added_up(self) -> Self {
        let as_it_is = self.weights.iter().all(|&weight| weight == 1.0) && self.dirs.len() < 2;
        Self { together: if as_it_is { Together::OneByOne } else { Together::Sum }, ..self }
    }

    pub fn is_empty(&self) -> bool {
        self.dirs.is_empty()
    }

    pub fn together(&self) -> Together {
        self.together
    }

    pub fn is_sum(&self) -> bool {
        self.together == Together::Sum
    }

    pub fn is_by_row(&self) -> bool {
        self.together == Together::ByRow
    }

    /// The weight of each.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// The name that an adapter was given, else its directory.
    pub fn name(&self, index: usize) -> String {
        self.names[index].clone().unwrap_or_else(|| self.dirs[index].display().to_string())
    }

    /// Names of those that are computed with, one after the other; without a name the base alone, or what rows name.
    pub fn passes(&self) -> Vec<Option<String>> {
        let names = (0..self.dirs.len()).map(|index| self.name(index));
        match self.together {
            Together::OneByOne if !self.dirs.is_empty() => names.map(Some).collect(),
            Together::OneByOne | Together::ByRow => vec![None],
            Together::Sum => {
                let parts: Vec<String> =
                    names.zip(&self.weights).map(|(name, weight)| format!("{name}:{weight}")).collect();
                vec![Some(parts.join(" + "))]
            }
        }
    }

    /// Number of the adapter that a row names: by its name, its directory, or the last part of that where no other
    /// has it; -1 for the base alone, of a row that names none. Refused: a name that no adapter has.
    pub fn number(&self, named: Option<&str>) -> Result<i32> {
        let Some(named) = named.map(str::trim).filter(|named| !named.is_empty()) else { return Ok(-1) };
        let all = 0..self.dirs.len();
        let ends_so = |index: &usize| self.dirs[*index].file_name().is_some_and(|end| end == named);
        let exact = all.clone().find(|&index| self.name(index) == named || self.dirs[index] == Path::new(named));
        let mut ends = all.clone().filter(ends_so);
        let found = exact.or_else(|| ends.next().filter(|_| ends.next().is_none()));
        match found {
            Some(index) => Ok(index as i32),
            None => {
                let known: Vec<String> = all.map(|index| format!("{:?}", self.name(index))).collect();
                refuse!("`adapter`: found {named:?}, expected {} or none for the base alone", known.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(given: &[&str]) -> Result<Adapters> {
        Adapters::parse(&given.iter().map(PathBuf::from).collect::<Vec<_>>())
    }

    #[test]
    fn names_and_weights_stand_around_the_directory() {
        let adapters = parsed(&["no/a", "x=no/b"]).unwrap();
        assert_eq!(adapters.dirs, [Path::new("no/a"), Path::new("no/b")]);
        assert_eq!(adapters.passes(), [Some("no/a".to_owned()), Some("x".to_owned())]);
        let sum = parsed(&["no/a:0.25", "x=no/b:-2", "no/c"]).unwrap();
        assert_eq!((sum.together(), sum.weights()), (Together::Sum, &[0.25, -2.0, 1.0][..]));
        assert_eq!(sum.passes(), [Some("no/a:0.25 + x:-2 + no/c:1".to_owned())]);
        assert_eq!(sum.dirs[1], Path::new("no/b"));
        for whole in ["no/x=y", "=no", "no/a:b"] {
            assert_eq!(parsed(&[whole]).unwrap().dirs, [Path::new(whole)], "{whole}");
        }
        for (given, words) in [
            (&["no/a:inf"][..], "finite"),
            (&["x=no/a:"][..], "found no weight after the colon, expected no/a or a number as in no/a:0.5"),
            (&["x=no/a", "x=no/b"][..], "\"x\" twice"),
            (&["x=no/a:2", "x=no/b:3"][..], "\"x\" twice"),
            (&["x", "x=no/b"][..], "\"x\" twice"),
        ] {
            let error = parsed(given).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(parsed(&["no/a:0.5", "no/a:0.5"]).unwrap().weights(), [0.5, 0.5]);
        assert_eq!(Adapters::default().passes(), [None]);
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().join("r=8:0.5");
        std::fs::create_dir(&there).unwrap();
        let found = Adapters::parse([&there]).unwrap();
        assert_eq!((&found.dirs[..], found.together()), (&[there][..], Together::OneByOne));
    }

    #[test]
    fn several_become_their_sum_and_one_stays() {
        let of = |given: &[&str]| parsed(given).unwrap().added_up();
        for (given, together) in [
            (&["no/a"][..], Together::OneByOne),
            (&["no/a:1"][..], Together::OneByOne),
            (&["no/a:0.5"][..], Together::Sum),
            (&["no/a", "no/b"][..], Together::Sum),
        ] {
            assert_eq!(of(given).together(), together, "{given:?}");
        }
        assert_eq!(of(&["x=no/a", "no/b:2"]).passes(), [Some("x:1 + no/b:2".to_owned())]);
    }

    #[test]
    fn rows_name_adapters_by_name_directory_or_its_end() {
        let adapters = parsed(&["runs/a", "x=runs/b", "other/b"]).unwrap().by_row().unwrap();
        for (named, expected) in [("runs/a", 0), (" a ", 0), ("x", 1), ("runs/b", 1), ("other/b", 2), ("", -1)] {
            assert_eq!(adapters.number(Some(named)).unwrap(), expected, "{named}");
        }
        assert_eq!(adapters.number(None).unwrap(), -1);
        for unknown in ["b", "runs", "X"] {
            let error = adapters.number(Some(unknown)).unwrap_err().to_string();
            assert!(error.contains(&format!("{unknown:?}")) && error.contains("\"x\""), "{error}");
        }
        let none: &[&str] = &[];
        for (given, words) in
            [(none, "no adapter"), (&["a:1"][..], "weight"), (&["x=a", "x=b"][..], "twice"), (&["a", "a"][..], "twice")]
        {
            let error = parsed(given).and_then(Adapters::by_row).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
