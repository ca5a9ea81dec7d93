use super::*;
use std::time::Duration;

/// Nobody else, or a rank that is gone.
struct Alone {
    is_gone: bool,
    sums: usize,
}

impl Others for Alone {
    fn check(&mut self) -> Result<()> {
        if self.is_gone { Err(CudaError::Device("rank 1 is gone".into())) } else { Ok(()) }
    }

    fn sum(&mut self, values: &mut [f32]) -> Result<()> {
        self.check()?;
        self.sums += 1;
        // Another rank has the same values, but for the sum of joining.
        if self.sums > 1 {
            values.iter_mut().for_each(|value| *value *= 2.0);
        }
        Ok(())
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(600)
    }
}

fn joined(device: &Device) -> (Nccl, Alone) {
    let mut alone = Alone { is_gone: false, sums: 0 };
    let id = Nccl::unique_id().unwrap();
    (Nccl::join(device, &id, 0, 1, &mut alone).unwrap(), alone)
}

#[test]
fn arrays_come_back_as_sums_in_the_order_in_which_they_were_given() {
    let device = Device::open().unwrap();
    let (mut group, mut others) = joined(&device);
    for round in 0..3 {
        let array = |value: f32, len: usize| device.upload(&vec![value + round as f32; len]).unwrap();
        group.begin(vec![array(1.0, 5), array(2.0, 0), array(3.0, 700)], &mut others).unwrap();
        group.begin(vec![array(4.0, 1)], &mut others).unwrap();
        let sums = group.finish(&mut others).unwrap();
        let sums: Vec<Vec<f32>> = sums.iter().map(|sum| device.download(sum).unwrap()).collect();
        let expected = [(1.0, 5), (2.0, 0), (3.0, 700), (4.0, 1)];
        assert_eq!(sums, expected.map(|(value, len)| vec![2.0 * (value + round as f32); len]));
    }
    assert!(group.finish(&mut others).unwrap().is_empty());
}

#[test]
fn a_rank_that_is_gone_ends_the_group_and_gives_the_arrays_back() {
    let device = Device::open().unwrap();
    let (mut group, mut others) = joined(&device);
    group.begin(vec![device.upload(&[1.0f32; 9]).unwrap()], &mut others).unwrap();
    others.is_gone = true;
    let mut more = || group.begin(vec![device.upload(&[2.0f32; 4]).unwrap()], &mut others).unwrap_err().to_string();
    assert_eq!(more(), "rank 1 is gone");
    assert_eq!(more(), "NCCL: the group of GPUs has ended");
    assert_eq!(group.finish(&mut others).err().unwrap().to_string(), "NCCL: the group of GPUs has ended");
    let lengths: Vec<usize> = group.abandon().iter().map(Buffer::len).collect();
    assert_eq!(lengths, [9, 4, 4]);
}

#[test]
fn a_name_of_another_length_and_a_rank_that_is_none_are_refused() {
    let device = Device::open().unwrap();
    let others = &mut Alone { is_gone: false, sums: 0 };
    let id = Nccl::unique_id().unwrap();
    let mut refused = |id: &[u8], rank| Nccl::join(&device, id, rank, 1, others).unwrap_err().to_string();
    assert_eq!(refused(&id[1..], 0), "NCCL: a name of 127 bytes, expected 128");
    assert!(refused(&id, 1).contains("invalid argument"));
}
