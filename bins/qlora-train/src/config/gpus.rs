//! GPUs that a run can be planned for without having them, by the names that nvidia-smi prints and that people write.
//!
//! The memory is what CUDA sees, with ECC on where it is the default: the least that is reported, rounded down.

/// A GPU of a plan.
pub struct Gpu {
    /// The value of `gpu`, in lower case and without product lines
    pub key: &'static str,
    /// NVIDIA's name
    pub name: &'static str,
    /// Memory sizes, the usual one first: in GB, as names have them, and as CUDA reports them
    sizes: &'static [(u32, &'static str)],
}

const fn gpu(key: &'static str, name: &'static str, sizes: &'static [(u32, &'static str)]) -> Gpu {
    Gpu { key, name, sizes }
}

/// GPUs that are known by a name.
pub static GPUS: [Gpu; 50] = [
    gpu("l40s", "L40S", &[(48, "44.4GiB")]),
    gpu("l40", "L40", &[(48, "44.4GiB")]),
    gpu("l4", "L4", &[(24, "21.9GiB")]),
    gpu("l20", "L20", &[(48, "44.4GiB")]),
    gpu("a6000", "RTX A6000", &[(48, "47.4GiB")]),
    gpu("6000ada", "RTX 6000 Ada", &[(48, "44.4GiB")]),
    gpu("5000ada", "RTX 5000 Ada", &[(32, "29.4GiB")]),
    gpu("4000ada", "RTX 4000 Ada", &[(20, "18.1GiB")]),
    gpu("pro6000", "RTX PRO 6000", &[(96, "94.9GiB")]),
    gpu("a5000", "RTX A5000", &[(24, "23.5GiB")]),
    gpu("a4500", "RTX A4500", &[(20, "19.5GiB")]),
    gpu("a4000", "RTX A4000", &[(16, "15.6GiB")]),
    gpu("a2000", "RTX A2000", &[(6, "5.6GiB"), (12, "11.6GiB")]),
    gpu("a40", "A40", &[(48, "44.4GiB")]),
    gpu("a30", "A30", &[(24, "23.5GiB")]),
    gpu("a10", "A10", &[(24, "21.9GiB")]),
    gpu("a10g", "A10G", &[(24, "21.9GiB")]),
    gpu("3060", "RTX 3060", &[(12, "11.6GiB")]),
    gpu("3060ti", "RTX 3060 Ti", &[(8, "7.6GiB")]),
    gpu("3070", "RTX 3070", &[(8, "7.6GiB")]),
    gpu("3080", "RTX 3080", &[(10, "9.6GiB"), (12, "11.6GiB")]),
    gpu("3080ti", "RTX 3080 Ti", &[(12, "11.6GiB")]),
    gpu("3090", "RTX 3090", &[(24, "23.6GiB")]),
    gpu("3090ti", "RTX 3090 Ti", &[(24, "23.5GiB")]),
    gpu("4060", "RTX 4060", &[(8, "7.6GiB")]),
    gpu("4060ti", "RTX 4060 Ti", &[(16, "15.5GiB"), (8, "7.6GiB")]),
    gpu("4070", "RTX 4070", &[(12, "11.5GiB")]),
    gpu("4070super", "RTX 4070 SUPER", &[(12, "11.5GiB")]),
    gpu("4070ti", "RTX 4070 Ti", &[(12, "11.5GiB")]),
    gpu("4070tisuper", "RTX 4070 Ti SUPER", &[(16, "15.5GiB")]),
    gpu("4080", "RTX 4080", &[(16, "15.5GiB")]),
    gpu("4080super", "RTX 4080 SUPER", &[(16, "15.5GiB")]),
    gpu("4090", "RTX 4090", &[(24, "23.5GiB")]),
    gpu("4090d", "RTX 4090 D", &[(24, "23.5GiB")]),
    gpu("5060", "RTX 5060", &[(8, "7.5GiB")]),
    gpu("5060ti", "RTX 5060 Ti", &[(16, "15.4GiB"), (8, "7.5GiB")]),
    gpu("5070", "RTX 5070", &[(12, "11.4GiB")]),
    gpu("5070ti", "RTX 5070 Ti", &[(16, "15.4GiB")]),
    gpu("5080", "RTX 5080", &[(16, "15.4GiB")]),
    gpu("5090", "RTX 5090", &[(32, "31.3GiB")]),
    gpu("5090d", "RTX 5090 D", &[(32, "31.3GiB")]),
    gpu("a100", "A100", &[(80, "79.1GiB"), (40, "39.3GiB")]),
    gpu("a800", "A800", &[(80, "79.1GiB")]),
    gpu("h100", "H100", &[(80, "79.1GiB")]),
    gpu("h100pcie", "H100 PCIe", &[(80, "79.1GiB")]),
    gpu("h100nvl", "H100 NVL", &[(94, "93.0GiB")]),
    gpu("h800", "H800", &[(80, "79.1GiB")]),
    gpu("h20", "H20", &[(96, "94.9GiB")]),
    gpu("h200", "H200", &[(141, "139.7GiB")]),
    gpu("b200", "B200", &[(180, "178.3GiB")]),
];

/// Words of names that do not tell one GPU from another: vendor and product lines before, form and memory behind.
const BEFORE: [&str; 6] = ["nvidia", "geforce", "tesla", "rtx", "gtx", "gpu"];
const BEHIND: [&str; 19] = [
    "generation",
    "gpu",
    "edition",
    "workstation",
    "server",
    "maxq",
    "blackwell",
    "sxm6",
    "sxm5",
    "sxm4",
    "sxm2",
    "sxm",
    "pcie",
    "nvl",
    "hbm3e",
    "hbm3",
    "hbm2e",
    "hbm2",
    "gddr6",
];

/// GPUs below compute capability 8.0, on which no kernel runs.
const TOO_OLD: [&str; 14] = [
    "t4",
    "v100",
    "p100",
    "p40",
    "1080",
    "1080ti",
    "1660ti",
    "2060",
    "2070",
    "2080",
    "2080ti",
    "titanrtx",
    "quadrortx6000",
    "quadrortx8000",
];

/// Parts of names that leave the size of the memory open, and the reason.
const UNTOLD: [(&[&str], &str); 2] = [
    (&["laptop", "mobile", "notebook"], "a GPU of a laptop may have other memory than the card of its name"),
    (&["gh200", "gb200"], "names of GH200 and GB200 do not tell it; 480GB in one of them is the processor's"),
];

/// A GPU by a name.
pub struct Chosen {
    pub gpu: &'static Gpu,
    /// Its memory, as `device_memory` takes it
    pub memory: &'static str,
    /// A line for people where it comes in several sizes and none was named; else empty
    pub note: String,
}

/// NVIDIA's name of a GPU and its memory, by a value of `gpu`.
pub fn gpu_named(value: &str) -> Option<(&'static str, &'static str)> {
    choose(value).ok().map(|chosen| (chosen.gpu.name, chosen.memory))
}

/// The GPU of a name, in any case and with any separators. Refused: an unknown one, and a size that it does not come
/// in; the text says what is expected.
pub fn choose(value: &str) -> Result<Chosen, String> {
    let Name { words, size } = Name::parse(value);
    let by_key = |key: &str| GPUS.iter().find(|gpu| gpu.key == key);
    let Some(gpu) = shortened(&words, by_key) else {
        let is_old = shortened(&words, |key| TOO_OLD.contains(&key).then_some(())).is_some();
        let untold = UNTOLD.iter().find(|(parts, _)| parts.iter().any(|part| words.contains(part)));
        return Err(match (untold, nearest(without_before(&words))) {
            _ if is_old => "expected a GPU of compute capability 8.0 or above, on which the kernels run".to_owned(),
            (Some((_, why)), _) => format!("expected its memory, such as --device-memory 15GiB: {why}"),
            (_, Some(key)) => format!("{}; {key} is nearest", expected()),
            _ => expected(),
        });
    };
    let found = match size {
        Some(size) => gpu.sizes.iter().find(|(gb, _)| *gb == size),
        None => gpu.sizes.first(),
    };
    let Some(&(gb, memory)) = found else {
        let sizes: Vec<String> = gpu.sizes.iter().map(|(gb, _)| format!("{gb} GB")).collect();
        return Err(format!(
            "expected the {} with {} (any other size by --device-memory, such as 15GiB)",
            gpu.name,
            sizes.join(" or ")
        ));
    };
    let others = gpu.sizes.iter().filter(|(other, _)| *other != gb && size.is_none());
    let others: Vec<String> = others.map(|(other, _)| format!("{}-{other}gb", gpu.key)).collect();
    let note = match others.is_empty() {
        true => String::new(),
        false => format!("the {} with {gb} GB is taken; there is {} too", gpu.name, others.join(" and ")),
    };
    Ok(Chosen { gpu, memory, note })
}

/// The list of values, for messages.
fn expected() -> String {
    let keys: Vec<&str> = GPUS.iter().map(|gpu| gpu.key).collect();
    format!("expected one of {} (any other by its memory: --device-memory 15GiB)", keys.join(", "))
}

/// The most similar key. None: no key is similar enough. A key with another number is never taken: it names another
/// GPU.
fn nearest(words: &str) -> Option<&'static str> {
    const ALIKE: f64 = 0.6;
    let alike = |key: &str| strsim::normalized_damerau_levenshtein(key, words);
    // The first of several equally similar keys.
    let keys = GPUS.iter().rev().map(|gpu| gpu.key);
    let keys = keys.filter(|key| alike(key) >= ALIKE && number_of(key) == number_of(words));
    keys.max_by(|one, other| alike(one).total_cmp(&alike(other)))
}

/// The first number of a name.
fn number_of(words: &str) -> Option<&str> {
    words.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty())
}

/// A name: its words without what is between them, and the size of memory that it has.
struct Name {
    words: String,
    size: Option<u32>,
}

impl Name {
    fn parse(value: &str) -> Self {
        let value = value.to_lowercase();
        let mut words: Vec<&str> =
            value.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
        let mut size = None;
        // The model comes first, as in 4090 24 GB.
        for at in (1..words.len()).rev() {
            let (unit, number) = match words[at] {
                "gb" | "gib" | "g" => (1, words[at - 1]),
                word => (0, word.trim_end_matches("gib").trim_end_matches("gb").trim_end_matches('g')),
            };
            let is_size = (unit == 1 && at > 1) || (unit == 0 && number != words[at]);
            if let Some(number) = number.parse::<u32>().ok().filter(|_| is_size) {
                size = Some(number);
                words.drain(at - unit..=at);
                break;
            }
        }
        Self { words: words.concat(), size }
    }
}

fn without_before(words: &str) -> &str {
    let mut rest = words;
    while let Some(shorter) = BEFORE.iter().find_map(|word| rest.strip_prefix(word)) {
        rest = shorter;
    }
    rest
}

/// The result of `known` for the words, with as few words left out as possible.
fn shortened<T>(words: &str, known: impl Fn(&str) -> Option<T>) -> Option<T> {
    let mut rest = without_before(words);
    loop {
        if let Some(found) = known(rest) {
            return Some(found);
        }
        rest = BEHIND.iter().find_map(|word| rest.strip_suffix(word))?;
    }
}

#[cfg(test)]
mod tests;
