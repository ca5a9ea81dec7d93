//! The optimizer's C interface: every named error is reached and nothing is written on the way.

use super::adamw;
use crate::device::{Buffer, Device};
use crate::optim::AdamW;
use crate::sys;
use std::ptr::{null, null_mut};

const N: usize = 300;

struct Valid {
    device: Device,
    floats: Buffer<f32>,
    table: Buffer<u64>,
    tensor: sys::qk_adamw_tensor,
    adamw: sys::qk_adamw_args,
}

impl Valid {
    /// Boxed: one struct points to the other.
    fn new() -> Box<Self> {
        let device = Device::open().expect("a device to test on");
        // value, gradient, m and v after each other, 16-byte aligned; then two absmax each, rates, a state and a
        // workspace.
        let (mut floats, table) = (device.upload(&[1.0f32; 2048]).unwrap(), device.upload(&[0u64; 64]).unwrap());
        let base = floats.view_mut().address();
        let tensor = sys::qk_adamw_tensor {
            struct_size: size_of::<sys::qk_adamw_tensor>() as u32,
            rate: 0,
            n: N as i64,
            value: base,
            working: null_mut(),
            gradient: base.wrapping_add(304),
            m: base.wrapping_add(608).cast(),
            v: base.wrapping_add(912).cast(),
            m_absmax: null_mut(),
            v_absmax: null_mut(),
        };
        let adamw = sys::qk_adamw_args {
            struct_size: size_of::<sys::qk_adamw_args>() as u32,
            num_tensors: 1,
            tensors: null(),
            table: table.view().address().cast(),
            rates: base.wrapping_add(1216).cast(),
            num_rates: 1,
            reserved: 0,
            gradient_state: null(),
        };
        let mut valid = Box::new(Self { device, floats, table, tensor, adamw });
        valid.adamw.tensors = &raw const valid.tensor;
        valid
    }

    fn norm(&self, max_norm: f64, state: usize, workspace: usize, bytes: usize) -> i32 {
        // SAFETY: refused before device memory is read, or valid.
        unsafe { sys::qk_gradient_norm(&self.adamw, max_norm, state as *mut _, workspace as *mut _, bytes, null_mut()) }
    }
}

/// The status of an update with one thing spoiled; nothing may have been written.
fn spoiled(spoil: impl FnOnce(&mut Valid)) -> i32 {
    let mut valid = Valid::new();
    spoil(&mut valid);
    // SAFETY: the structs are those of `new`, spoiled so that the call must refuse them before it reads device memory.
    let status = unsafe { sys::qk_adamw_update(&valid.adamw, null_mut()) };
    assert!(valid.device.download(&valid.floats).unwrap().iter().all(|&x| x == 1.0), "refused, and yet written");
    status
}

#[test]
fn every_bad_argument_of_the_optimizer_has_its_error() {
    let size = sys::QK_ERROR_STRUCT_SIZE;
    assert_eq!(spoiled(|v| v.adamw.struct_size = 4), size);
    assert_eq!(spoiled(|v| v.tensor.struct_size = 4), size);
    let null_pointer = sys::QK_ERROR_NULL_POINTER;
    assert_eq!(spoiled(|v| v.adamw.tensors = null()), null_pointer);
    assert_eq!(spoiled(|v| v.adamw.table = null()), null_pointer);
    assert_eq!(spoiled(|v| v.adamw.rates = null()), null_pointer);
    assert_eq!(spoiled(|v| v.tensor.value = null_mut()), null_pointer);
    assert_eq!(spoiled(|v| v.tensor.gradient = null()), null_pointer);
    assert_eq!(spoiled(|v| v.tensor.m = null_mut()), null_pointer);
    assert_eq!(spoiled(|v| v.tensor.v = null_mut()), null_pointer);
    assert_eq!(spoiled(|v| (v.tensor.m, v.tensor.v) = (null_mut(), null_mut())), null_pointer, "no moments");
    assert_eq!(spoiled(|v| v.tensor.m_absmax = v.tensor.value), null_pointer, "one absmax of two");
    let shape = sys::QK_ERROR_SHAPE;
    assert_eq!(spoiled(|v| v.adamw.num_tensors = 0), shape);
    assert_eq!(spoiled(|v| v.tensor.n = 0), shape);
    assert_eq!(spoiled(|v| v.tensor.n = i64::MAX), shape);
    assert_eq!(spoiled(|v| v.tensor.rate = 1), sys::QK_ERROR_VALUE, "there is one rate");
    let alignment = sys::QK_ERROR_ALIGNMENT;
    assert_eq!(spoiled(|v| v.tensor.value = v.tensor.value.wrapping_add(1)), alignment);
    assert_eq!(spoiled(|v| v.tensor.gradient = v.tensor.gradient.wrapping_add(2)), alignment);
    assert_eq!(spoiled(|v| v.tensor.working = v.tensor.value.wrapping_byte_add(8).cast()), alignment);
    assert_eq!(spoiled(|v| v.tensor.m = v.tensor.m.wrapping_byte_add(4)), alignment);
    assert_eq!(spoiled(|v| v.tensor.v = v.tensor.v.wrapping_byte_add(4)), alignment);
    let absmax = |v: &mut Valid| {
        v.tensor.m_absmax = v.tensor.value.wrapping_byte_add(2);
        v.tensor.v_absmax = v.tensor.value;
    };
    assert_eq!(spoiled(absmax), alignment);
    assert_eq!(spoiled(|v| v.adamw.table = v.adamw.table.wrapping_byte_add(8)), alignment);
    assert_eq!(spoiled(|v| v.adamw.gradient_state = v.tensor.value.wrapping_add(1).cast()), alignment);
    // SAFETY: null is refused.
    assert_eq!(unsafe { sys::qk_adamw_update(null(), null_mut()) }, null_pointer);
}

#[test]
fn norms_tables_and_rates_refuse_too() {
    let valid = Valid::new();
    let base = valid.floats.view().address() as usize;
    let (state, workspace) = (base + 4 * 1600, base + 4 * 1700);
    assert_eq!(valid.norm(1.0, 0, workspace, 8), sys::QK_ERROR_NULL_POINTER);
    assert_eq!(valid.norm(1.0, state + 4, workspace, 8), sys::QK_ERROR_ALIGNMENT);
    assert_eq!(valid.norm(1.0, state, workspace + 8, 8), sys::QK_ERROR_ALIGNMENT);
    assert_eq!(valid.norm(-1.0, state, workspace, 8), sys::QK_ERROR_VALUE);
    assert_eq!(valid.norm(f64::NAN, state, workspace, 8), sys::QK_ERROR_VALUE);
    assert_eq!(valid.norm(1.0, state, workspace, 7), sys::QK_ERROR_WORKSPACE);
    assert_eq!(valid.norm(1.0, state, 0, 8), sys::QK_ERROR_WORKSPACE);
    let null_pointer = sys::QK_ERROR_NULL_POINTER;
    for (has_m, has_v, status) in [(false, true, null_pointer), (true, false, null_pointer), (false, false, sys::QK_OK)]
    {
        let (mut valid, mut bytes) = (Valid::new(), 0usize);
        if !has_m {
            valid.tensor.m = null_mut();
        }
        if !has_v {
            valid.tensor.v = null_mut();
        }
        // SAFETY: host memory only.
        assert_eq!(unsafe { sys::qk_adamw_table_size(&valid.tensor, 1, &mut bytes) }, status);
        // SAFETY: as above.
        assert_eq!(unsafe { sys::qk_gradient_norm_workspace_size(&valid.adamw, &mut bytes) }, status);
    }
    let (mut bytes, mut table) = (0usize, [0u64; 16]);
    let room = size_of_val(&table);
    // SAFETY: host memory only; the table has the room that is named, or is refused.
    unsafe {
        let (tensor, table) = (&raw const valid.tensor, table.as_mut_ptr().cast());
        assert_eq!(sys::qk_adamw_table_size(tensor, 1, null_mut()), sys::QK_ERROR_NULL_POINTER);
        assert_eq!(sys::qk_adamw_table_size(tensor, 1, &mut bytes), sys::QK_OK);
        assert_eq!(bytes, 84);
        assert_eq!(sys::qk_adamw_table(tensor, 1, null_mut(), room), sys::QK_ERROR_NULL_POINTER);
        assert_eq!(sys::qk_adamw_table(tensor, 1, table, 83), sys::QK_ERROR_WORKSPACE);
        assert_eq!(sys::qk_adamw_table(tensor, 1, table.wrapping_byte_add(4), room - 8), sys::QK_ERROR_ALIGNMENT);
        assert_eq!(sys::qk_adamw_table(tensor, 1, table, room), sys::QK_OK);
        assert_eq!(sys::qk_gradient_norm_workspace_size(&valid.adamw, null_mut()), sys::QK_ERROR_NULL_POINTER);
        assert_eq!(sys::qk_gradient_norm_workspace_size(&valid.adamw, &mut bytes), sys::QK_OK);
        assert_eq!(bytes, 8);
        assert_eq!(sys::qk_adamw_rate_of(1.0, 0.9, 0.999, 1e-8, 0.0, 1, null_mut()), sys::QK_ERROR_NULL_POINTER);
    }
    assert_eq!(valid.table.view().len(), 64);
}

/// Engines in C compute the same scalars as the Rust reference.
#[test]
fn rates_of_c_are_those_of_the_reference() {
    for step in [1, 2, 17, 1000, 1_000_000] {
        let s = AdamW { learning_rate: 3e-4, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, step };
        let mut rate = [f32::NAN; adamw::RATE_LEN];
        // SAFETY: the struct is as long as the array, eight f32.
        let status = unsafe {
            let to = rate.as_mut_ptr().cast();
            sys::qk_adamw_rate_of(s.learning_rate, s.beta1, s.beta2, s.epsilon, s.weight_decay, step, to)
        };
        assert_eq!((status, rate.to_vec()), (sys::QK_OK, adamw::rates(&[s])));
        // SAFETY: refused.
        let status = unsafe { sys::qk_adamw_rate_of(1.0, 0.9, 0.9, 0.1, 0.0, 0, rate.as_mut_ptr().cast()) };
        assert_eq!(status, sys::QK_ERROR_VALUE, "the first step is 1");
    }
}
