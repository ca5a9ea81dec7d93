//! The adapters of a command: their names, their weights, and the way in which they are used on the base.

use crate::bail_usage;
use crate::error::Result;
use crate::files::home::expand_home;
use std::path::{Path, PathBuf};

/// Way in which several adapters are used on the base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Together {
    /// Each alone, one after the other
    #[default]
    OneByOne,
    /// Their weighted sum, as one adapter
    Sum,
    /// All at once; each row uses the one that it names
    ByRow,
}

/// Adapters as they were given: `DIR`, `NAME=DIR`, `DIR:WEIGHT` or `NAME=DIR:WEIGHT`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adapters {
    pub dirs: Vec<PathBuf>,
    /// The name that each was given, if any
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
    /// A text that is an existing path has neither name nor weight.
    fn parse(given: &Path) -> Result<Self> {
        let Some(text) = given.to_str().filter(|_| !given.exists()) else {
            return Ok(Self { name: None, dir: given.to_owned(), weight: None });
        };
        let (name, rest) = match text.split_once('=') {
            Some((name, dir)) if !name.trim().is_empty() && !name.contains('/') => (Some(name.trim().to_owned()), dir),
            _ => (None, text),
        };
        let expanded = expand_home(Path::new(rest));
        let rest = expanded.to_str().unwrap_or(rest);
        let (dir, weight) = match rest.rsplit_once(':') {
            Some((dir, "")) if !Path::new(rest).exists() => {
                bail_usage!(
                    "--adapter {text}: found no weight after the colon, expected {dir} or a number as in {dir}:0.5"
                )
            }
            Some((dir, weight)) if !Path::new(rest).exists() => match weight.parse::<f64>() {
                Ok(weight) if !weight.is_finite() => {
                    bail_usage!("--adapter {text}: found a weight of {weight}, expected a finite number")
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

    /// Adapters as they were given. If one has a weight, all are added up, with weight 1 for the others. Refused: a
    /// weight that is missing after its colon or not finite, a name that another has.
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

    /// Lets each row use the adapter that it names. Refused: no adapters, weights, and names that two share.
    pub fn by_row(self) -> Result<Self> {
        if self.dirs.is_empty() {
            bail_usage!("--adapter-by-row: found no adapter, expected those that the rows name: --adapter NAME=DIR");
        }
        if self.together == Together::Sum {
            bail_usage!(
                "--adapter-by-row: found an adapter with a weight, expected none: weights add adapters up to one"
            );
        }
        self.check_names(|_, _| true)?;
        Ok(Self { together: Together::ByRow, ..self })
    }

    /// Refuses a name that two adapters have which may not share it.
    fn check_names(&self, differ: impl Fn(usize, usize) -> bool) -> Result<()> {
        for other in 0..self.dirs.len() {
            let name = self.name(other);
            if (0..other).any(|one| self.name(one) == name && differ(one, other)) {
                bail_usage!("--adapter: found {name:?} twice, expected a name of its own for each: --adapter NAME=DIR");
            }
        }
        Ok(())
    }

    /// Adds them up to one, their weighted sum. A single one of weight 1 stays as it is.
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

    /// The name that an adapter was given, or its directory.
    pub fn name(&self, index: usize) -> String {
        self.names[index].clone().unwrap_or_else(|| self.dirs[index].display().to_string())
    }

    /// Names of the adapters to compute with, one after the other; no name: the base alone, or the adapters that rows
    /// name.
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

    /// Number of the adapter that a row names: by its name, its directory, or the last part of that where no other has
    /// it; -1 for the base alone, if a row names none. Refused: a name that no adapter has.
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
                bail_usage!("`adapter`: found {named:?}, expected {} or none for the base alone", known.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests;
