//! Kernels' names as people write them.

use cpp_demangle::Symbol;

/// `linear_forward<Config<64, 4, 4, false>>` of a mangled name: no return type, namespace or parameters.
pub fn readable(mangled: &str) -> String {
    let Some(full) = Symbol::new(mangled).ok().and_then(|symbol| symbol.demangle().ok()) else {
        return mangled.to_owned();
    };
    let mut text = full.replace("(anonymous namespace)::", "");
    while text.contains("> >") {
        text = text.replace("> >", ">>");
    }
    let mut depth = 0;
    let end = text.find(|c: char| {
        depth += i32::from(c == '<') - i32::from(c == '>');
        c == '(' && depth == 0
    });
    text.truncate(end.unwrap_or(text.len()));
    text.strip_prefix("void ").map(str::to_owned).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_return_types_and_parameters_are_left_out() {
        let config = "_ZN50_GLOBAL__N__661efb15_17_linear_forward_cu_48ec6c7414linear_forwardINS_6ConfigILi64ELi4ELi4ELb0EEEEEv10LinearView";
        assert_eq!(readable(config), "linear_forward<Config<64, 4, 4, false>>");
        let mean = "_ZN48_GLOBAL__N__f5fa4f2c_15_nf4_quantize_cu_40c9a3354meanEPKflPf";
        assert_eq!(readable(mean), "mean");
        let generic =
            "_ZN52_GLOBAL__N__67c2691b_17_nf4_dequantize_cu_dac742b610dequantizeI13__nv_bfloat16EEv7Nf4ViewPT_";
        assert_eq!(readable(&generic.replace("52_", "50_")), "dequantize<__nv_bfloat16>");
        assert_eq!(readable("not_mangled"), "not_mangled");
    }
}
