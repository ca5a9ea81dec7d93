use super::*;

fn array(device: &Device, first: usize, len: usize) -> Buffer<f32> {
    device.upload(&numbers(first, len)).unwrap()
}

fn numbers(first: usize, len: usize) -> Vec<f32> {
    (first..first + len).map(|number| number as f32).collect()
}

/// Groups of one array and of several, of fewer and of more values than fit into all slots.
const GROUPS: [&[usize]; 6] = [&[3, 0, 5], &[1], &[0], &[40, 2, 0], &[7, 0], &[]];

fn begin_all(trip: &mut RoundTrip, device: &Device) -> Vec<Vec<f32>> {
    let mut expected = Vec::new();
    for (number, lengths) in GROUPS.into_iter().enumerate() {
        let starts = lengths.iter().scan(1000 * number, |next, len| Some(std::mem::replace(next, *next + len)));
        trip.begin(starts.zip(lengths).map(|(first, &len)| array(device, first, len)).collect()).unwrap();
        expected.push(numbers(1000 * number, lengths.iter().sum()));
    }
    expected
}

/// Values are given in order, whenever others are put back, and return to where they were.
#[test]
fn values_come_back_to_the_arrays_that_they_are_of() {
    let device = Device::open().unwrap();
    for (piece, ahead) in [(1, 1), (4, 1), (4, 3), (5, 6), (100, 2)] {
        let mut trip = RoundTrip::new(&device, piece).unwrap();
        for _ in 0..2 {
            let expected = begin_all(&mut trip, &device);
            let mut given = VecDeque::new();
            let mut count = 0;
            while count < GROUPS.len() || !given.is_empty() {
                if count < GROUPS.len() && given.len() < ahead {
                    let early = trip.values(false).unwrap();
                    let values = early.unwrap_or_else(|| trip.values(true).unwrap().unwrap());
                    assert_eq!(values, expected[count], "{piece} {ahead}");
                    given.push_back(values);
                    count += 1;
                } else if let Some(values) = given.pop_front() {
                    trip.put_back(&values.iter().map(|value| -2.0 * value).collect::<Vec<_>>()).unwrap();
                }
            }
            assert_eq!(trip.values(false).unwrap(), None);
            let arrays = trip.finish().unwrap();
            let lengths: Vec<usize> = arrays.iter().map(Buffer::len).collect();
            assert_eq!(lengths, GROUPS.concat());
            let found: Vec<f32> = arrays.iter().flat_map(|array| device.download(array).unwrap()).collect();
            let expected: Vec<f32> = expected.concat().into_iter().map(|value| -2.0 * value).collect();
            assert_eq!(found, expected, "{piece} {ahead}");
        }
    }
}

#[test]
fn arrays_are_as_they_were_when_they_were_begun() {
    let device = Device::open().unwrap();
    let mut trip = RoundTrip::new(&device, 8).unwrap();
    let mut array = array(&device, 1, 20);
    device.write(&mut array, &numbers(50, 20)).unwrap();
    trip.begin(vec![array]).unwrap();
    assert_eq!(trip.values(true).unwrap().unwrap(), numbers(50, 20));
}

/// Wherever they are, and new groups go the whole way afterwards.
#[test]
fn arrays_that_are_abandoned_are_given_back() {
    let device = Device::open().unwrap();
    let mut trip = RoundTrip::new(&device, 4).unwrap();
    for (given, put_back) in [(0, 0), (1, 0), (3, 1), (4, 4), (6, 5)] {
        begin_all(&mut trip, &device);
        let values: Vec<Vec<f32>> = (0..given).map(|_| trip.values(true).unwrap().unwrap()).collect();
        values[..put_back].iter().for_each(|values| trip.put_back(values).unwrap());
        let lengths: Vec<usize> = trip.abandon().iter().map(Buffer::len).collect();
        assert_eq!(lengths, GROUPS.concat());
        trip.begin(vec![array(&device, 7, 9)]).unwrap();
        let values = trip.values(true).unwrap().unwrap();
        assert_eq!(values, numbers(7, 9));
        trip.put_back(&values).unwrap();
        assert_eq!(device.download(&trip.finish().unwrap()[0]).unwrap(), values);
    }
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let device = Device::open().unwrap();
    let mut trip = RoundTrip::new(&device, 4).unwrap();
    let text = |result: Result<()>| result.unwrap_err().to_string();
    assert_eq!(text(trip.values(true).map(drop)), "no array is on its way to the host");
    trip.begin(vec![array(&device, 0, 6)]).unwrap();
    assert_eq!(text(trip.put_back(&[0.0; 6])), "the host has no array to put back");
    trip.values(true).unwrap();
    assert_eq!(text(trip.put_back(&[0.0; 5])), "5 values are put in the place of 6");
    assert_eq!(text(trip.finish().map(drop)), "groups of arrays that have not come back: 1");
}
