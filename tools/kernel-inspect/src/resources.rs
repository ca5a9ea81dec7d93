//! Registers, stack and shared memory of each kernel, as `cuobjdump --dump-resource-usage` prints it.

/// Resources of one kernel of one architecture.
#[derive(Debug, PartialEq)]
pub struct Resources {
    pub arch: String,
    /// Mangled.
    pub name: String,
    pub registers: u32,
    /// Bytes of local memory a thread: spilled registers and arrays that are not in registers.
    pub local: u32,
    /// Bytes of shared memory a block that are fixed when compiling; from sm_90 on 1,024 are the system's.
    pub shared: u32,
}

pub fn parse(listing: &str) -> Vec<Resources> {
    let mut arch = "";
    let mut name = "";
    let mut all = Vec::new();
    for line in listing.lines().map(str::trim) {
        if let Some(found) = line.strip_prefix("arch = ") {
            arch = found;
        } else if let Some(found) = line.strip_prefix("Function ") {
            name = found.trim_end_matches(':');
        } else if line.starts_with("REG:") {
            let field = |key: &str| {
                line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix(':')?.parse::<u32>().ok())
            };
            if let (Some(registers), Some(stack), Some(local), Some(shared)) =
                (field("REG"), field("STACK"), field("LOCAL"), field("SHARED"))
            {
                let (arch, name) = (arch.to_owned(), name.to_owned());
                all.push(Resources { arch, name, registers, local: stack + local, shared });
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_read_by_kernel_and_architecture() {
        let listing = "
member liba.a:a.o:
Fatbin ptx code:
arch = sm_80
ptxasOptions =  --generate-line-info

Fatbin elf code:
arch = sm_90
identifier = cuda/a.cu

Resource usage:
 Common:
  GLOBAL:64 CONSTANT[3]:8
 Function _Z5firstv:
  REG:30 STACK:8 SHARED:1024 LOCAL:0 CONSTANT[0]:384 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function second:
  REG:255 STACK:0 SHARED:0 LOCAL:16 CONSTANT[0]:384 TEXTURE:0 SURFACE:0 SAMPLER:0
";
        let expect = |name: &str, registers, local, shared| {
            let (arch, name) = ("sm_90".to_owned(), name.to_owned());
            Resources { arch, name, registers, local, shared }
        };
        assert_eq!(parse(listing), [expect("_Z5firstv", 30, 8, 1024), expect("second", 255, 16, 0)]);
    }
}
