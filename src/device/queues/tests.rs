use super::*;
use Queue::{Compute, Sums, ToDevice, ToHost};

/// Puts a number on a queue; it is noted when its turn comes.
fn note(queues: &Queues, noted: &Rc<RefCell<Vec<u32>>>, queue: Queue, number: u32) {
    let noted = noted.clone();
    queues.put(queue, move || {
        noted.borrow_mut().push(number);
        Ok(())
    });
}

#[test]
fn a_queue_does_what_others_wait_for_and_no_more() {
    let (queues, noted) = (Queues::default(), Rc::default());
    note(&queues, &noted, Compute, 1);
    let computed = queues.end(Compute);
    note(&queues, &noted, Compute, 2);
    note(&queues, &noted, ToDevice, 10);
    queues.wait(ToDevice, computed);
    note(&queues, &noted, ToDevice, 11);
    let copied = queues.end(ToDevice);
    queues.wait(Compute, copied);
    note(&queues, &noted, Compute, 3);
    note(&queues, &noted, ToHost, 20);
    assert!(!queues.is_reached(copied) && !queues.is_reached(computed) && noted.borrow().is_empty());
    queues.reach(copied).unwrap();
    assert_eq!(*noted.borrow(), [10, 1, 11]);
    assert!(queues.is_reached(copied) && queues.is_reached(computed));
    queues.reach(queues.end(Compute)).unwrap();
    assert_eq!(*noted.borrow(), [10, 1, 11, 2, 3], "nothing waits for the queue to the host");
}

#[test]
fn a_queue_that_only_waits_is_through_when_the_others_are() {
    let (queues, noted) = (Queues::default(), Rc::default());
    note(&queues, &noted, Compute, 1);
    queues.wait(Sums, queues.end(Compute));
    // A queue does not wait for itself.
    queues.wait(Sums, queues.end(Sums));
    let summed = queues.end(Sums);
    assert!(!queues.is_reached(summed));
    queues.reach(queues.end(Compute)).unwrap();
    assert!(queues.is_reached(summed) && *noted.borrow() == [1]);
}

#[test]
fn work_after_a_part_that_failed_is_done_by_the_next_call() {
    let (queues, noted) = (Queues::default(), Rc::default());
    queues.put(Compute, || Err(CudaError::Device("lost".into())));
    note(&queues, &noted, Compute, 1);
    assert_eq!(queues.reach(queues.end(Compute)).unwrap_err().to_string(), "lost");
    assert!(noted.borrow().is_empty());
    queues.reach(queues.end(Compute)).unwrap();
    assert_eq!(*noted.borrow(), [1]);
}

#[test]
fn a_stream_takes_work_as_long_as_its_queues_are_there() {
    let (queues, others) = (Queues::with_streams(), Queues::with_streams());
    let stream = queues.stream(ToHost);
    let done = Rc::new(Cell::new(0));
    let put = |stream: *mut c_void, number: u32| {
        let done = done.clone();
        put_on(stream, move || done.set(number));
    };
    put(stream, 1);
    put(others.stream(ToHost), 2);
    finish(queues.stream(Compute)).unwrap();
    assert_eq!(done.get(), 0);
    put(std::ptr::null_mut(), 3);
    assert_eq!(done.get(), 3, "nobody has the default stream");
    finish(stream).unwrap();
    assert_eq!(done.get(), 1);
    drop(queues);
    put(stream, 4);
    assert_eq!(done.get(), 4);
}
