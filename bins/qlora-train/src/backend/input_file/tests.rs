use super::*;

impl Values for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }
}

#[test]
fn inputs_come_back_in_the_order_of_a_backward_pass_and_places_are_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = InputFile::<Vec<u8>>::new(false);
    file.set_dir(dir.path());
    assert!(file.planned().is_empty() && file.traffic().is_none());
    let values = |layer: u8| vec![layer; 5000];
    for micro_batch in 0..2 {
        let mut places = Vec::new();
        for layer in 0..4 {
            let place = file.place(5000).unwrap();
            file.write(place, values(layer + 10 * micro_batch), 4990).unwrap();
            assert!(file.finish().unwrap() == values(layer + 10 * micro_batch));
            places.push(place);
        }
        for layer in (0..4).rev() {
            let place = places.pop().unwrap();
            file.read(place, vec![99; 5000], 4990).unwrap();
            let found = file.finish().unwrap();
            // Values beyond the rows of a short batch are never read.
            assert!(found[..4990] == values(layer + 10 * micro_batch)[..4990] && found[4990..] == [99; 10]);
            file.free(place);
        }
    }
    assert_eq!(file.planned(), [PlannedBuffer { name: NAME.to_owned(), bytes: 4 * 8192 }]);
    assert_eq!(file.traffic().unwrap().bytes, 2 * 2 * 4 * 4990);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_dry_run_counts_places_and_makes_no_file() {
    let mut file = InputFile::<Vec<u8>>::new(true);
    file.set_dir(Path::new("/no/such/directory"));
    let places = [1, 2].map(|_| file.place(8193).unwrap());
    assert_eq!((places, file.planned()[0].bytes), ([0, 1], 2 * 12_288));
    file.free(1);
    assert_eq!((file.place(8193).unwrap(), file.planned()[0].bytes), (1, 2 * 12_288));
}

#[test]
fn a_directory_that_is_not_there_is_an_error() {
    let mut file = InputFile::<Vec<u8>>::new(false);
    file.set_dir(Path::new("/no/such/directory"));
    let error = file.place(100).unwrap_err().to_string();
    assert!(error.starts_with("/no/such/directory: ") && error.contains("`scratch_dir`"), "{error}");
}
