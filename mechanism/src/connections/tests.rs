use super::*;
use proptest::prelude::*;

const BOUNDS: Bounds = Bounds { all: 100, address: 25 };

#[test]
fn no_address_exceeds_its_share_and_idle_connections_are_closed_first() {
    let all = Connections::default();
    let first: Vec<_> = (0..25).map(|_| all.open(Some(1), BOUNDS).unwrap()).collect();
    assert!(first.iter().all(|(_, made_room)| !made_room));
    first.iter().skip(1).for_each(|(entry, _)| assert!(entry.begin()));
    // The only idle one makes room, and then no other can.
    let (entry, made_room) = all.open(Some(1), BOUNDS).unwrap();
    assert!(made_room && entry.begin() && !first[0].0.begin());
    assert!(all.open(Some(1), BOUNDS).is_none());
    assert!(all.open(Some(2), BOUNDS).is_some() && all.open(None, BOUNDS).is_some());
    assert_eq!(all.number(), 27);
    // One with an unfinished head does, too.
    first[1].0.end();
    assert!(first[1].0.begin_head());
    assert!(all.open(Some(1), BOUNDS).is_some() && !first[1].0.begin_head());
}

#[test]
fn at_max_connections_the_address_with_the_most_loses_one() {
    let all = Connections::default();
    let bounds = Bounds { all: 40, address: 25 };
    let many: Vec<_> = (0..25).map(|_| all.open(Some(1), bounds).unwrap().0).collect();
    let few: Vec<_> = (0..15).map(|n| all.open(Some(10 + n), bounds).unwrap().0).collect();
    let more: Vec<_> = (0..15).map(|n| all.open(Some(50 + n), bounds).unwrap()).collect();
    assert!(more.iter().all(|(_, made_room)| *made_room));
    assert!(few.iter().all(|entry| entry.begin()), "none of them was told to go");
    assert_eq!((all.number(), many.iter().filter(|entry| !entry.begin()).count()), (40, 15));
    // All have requests in flight.
    more.iter().for_each(|(entry, _)| assert!(entry.begin()));
    assert!(all.open(Some(99), bounds).is_none());
}

#[test]
fn only_unused_connections_are_closed_to_free_a_descriptor() {
    let all = Connections::default();
    let hour = Duration::from_secs(3600);
    let stranger = all.open(Some(1), BOUNDS).unwrap().0;
    let edge: Vec<_> = (0..2).map(|_| all.open(None, BOUNDS).unwrap().0).collect();
    assert!(edge[0].begin() && !all.make_room(hour));
    assert!(all.make_room(Duration::ZERO) && !stranger.begin());
    assert!(all.make_room(Duration::ZERO) && !edge[1].begin());
    assert!(!all.make_room(Duration::ZERO), "it has a request in flight");
    edge[0].end();
    assert!(!all.make_room(hour) && all.make_room(Duration::ZERO));
    assert_eq!(all.number(), 0);
}

#[test]
fn heads_are_bounded_for_each_address_and_together() {
    let all = Connections::default();
    let bounds = Bounds { all: 1000, address: 1000 };
    let head = |key: u64, bytes: usize| {
        let entry = all.open(Some(key), bounds).unwrap().0;
        assert!(entry.begin_head());
        (all.hold_head(&entry, bytes, 1000), entry)
    };
    let attacker: Vec<_> = (0..100).map(|_| head(1, 50)).collect();
    assert_eq!(attacker.iter().filter(|(held, _)| *held).count(), 5, "a quarter of 1000");
    let others: Vec<_> = (2..5).flat_map(|key| (0..5).map(move |_| key)).map(|key| head(key, 50)).collect();
    assert!(others.iter().all(|(held, _)| *held));
    // Four addresses hold all of it: one of them makes room for another address, but not for more of its own.
    let (held, entry) = head(9, 50);
    assert!(held);
    assert!(!head(9, 1000).0);
    all.release_head(&entry);
    assert!(all.lock().heads <= 1000);
}

#[test]
fn an_address_has_as_many_requests_over_http_2_as_connections() {
    let all = Connections::default();
    let open = |key| all.open(key, BOUNDS).unwrap().0;
    let (first, second, other, edge) = (open(Some(1)), open(Some(1)), open(Some(2)), open(None));
    assert!([&first, &second, &first].iter().all(|entry| entry.begin_stream(3).is_ok()));
    assert_eq!(second.begin_stream(3), Err(NoStream::TooMany));
    assert!(other.begin_stream(3).is_ok() && (0..9).all(|_| edge.begin_stream(3).is_ok()));
    first.end_stream();
    assert!(second.begin_stream(3).is_ok() && first.begin_stream(3).is_err());
    // A request that does not begin is not counted.
    first.end_stream();
    assert!(first.tell(RESTS));
    assert_eq!(first.begin_stream(3), Err(NoStream::Closing));
    assert!(second.begin_stream(3).is_ok());
}

#[test]
fn header_blocks_of_busy_connections_make_room_as_well() {
    let all = Connections::default();
    let cx = Context::from_waker(std::task::Waker::noop());
    let block = |key: u64, is_busy: bool, bytes: usize| {
        let entry = all.open(Some(key), BOUNDS).unwrap().0;
        assert!((!is_busy || entry.begin_stream(9).is_ok()) && entry.begin_block());
        assert!(all.hold_head(&entry, bytes, 1000));
        entry
    };
    let (busy, idle, finished) = (block(1, true, 250), block(2, false, 240), block(3, false, 100));
    finished.end_block();
    all.release_head(&finished);
    let others: Vec<_> = (4..7).map(|key| block(key, false, 170)).collect();
    // More than is left: those with the most make room.
    let more: Vec<_> = (7..9).map(|key| block(key, false, 170)).collect();
    assert_eq!(busy.poll_told(&cx), Poll::Ready(Told::EndBlocks));
    assert_eq!(idle.poll_told(&cx), Poll::Ready(Told::Close));
    assert!(finished.poll_told(&cx).is_pending() && all.lock().heads <= 1000);
    // The one with the request counts until it closes.
    busy.end_stream();
    let number = all.number();
    all.close(&busy);
    all.close(&idle);
    assert_eq!(all.number(), number - 1);
    drop((others, more));
}

#[derive(Clone, Debug)]
enum Step {
    Open(Option<u64>),
    Close(usize),
    Begin(usize),
    Head(usize, usize),
}

proptest! {
    /// In any order of steps the numbers are right, no limit is exceeded, and no request in flight is closed.
    #[test]
    fn the_table_matches_its_connections(steps in prop::collection::vec(prop_oneof![
        4 => prop::option::of(0..5_u64).prop_map(Step::Open),
        1 => any::<usize>().prop_map(Step::Close),
        2 => any::<usize>().prop_map(Step::Begin),
        2 => (any::<usize>(), 1..400_usize).prop_map(|(which, bytes)| Step::Head(which, bytes)),
    ], 0..200)) {
        let bounds = Bounds { all: 12, address: 5 };
        let all = Connections::default();
        let mut open: Vec<(Arc<ConnectionState>, bool)> = Vec::new();
        for step in steps {
            match step {
                Step::Open(key) => open.extend(all.open(key, bounds).map(|(entry, _)| (entry, false))),
                Step::Close(which) if !open.is_empty() => {
                    let (entry, _) = open.swap_remove(which % open.len());
                    all.close(&entry);
                }
                Step::Begin(which) if !open.is_empty() => {
                    let count = open.len();
                    let (entry, is_busy) = &mut open[which % count];
                    if *is_busy {
                        entry.end();
                        *is_busy = false;
                    } else if entry.begin() {
                        all.release_head(entry);
                        *is_busy = true;
                    }
                }
                Step::Head(which, bytes) if !open.is_empty() => {
                    let (entry, is_busy) = &open[which % open.len()];
                    if !is_busy && entry.begin_head() {
                        all.hold_head(entry, bytes, 1000);
                    }
                }
                Step::Close(_) | Step::Begin(_) | Step::Head(..) => {}
            }
            let is_gone = |entry: &ConnectionState| entry.state.load(Ordering::Relaxed) & GONE != 0;
            prop_assert!(open.iter().all(|(entry, is_busy)| !(*is_busy && is_gone(entry))));
            let here = open.iter().filter(|(entry, _)| !is_gone(entry));
            prop_assert_eq!(all.number(), here.clone().count());
            prop_assert!(all.number() <= 12);
            let table = all.lock();
            let held: usize = here.map(|(entry, _)| entry.head_bytes.load(Ordering::Relaxed)).sum();
            prop_assert_eq!(table.heads, held);
            prop_assert!(table.heads <= 1000 && table.addresses.values().all(|address| address.open.len() <= 5));
            let lists = table.addresses.values().chain([&table.exempt]);
            let indices = lists.flat_map(|address| address.open.iter().enumerate());
            prop_assert!(indices.into_iter().all(|(index, entry)| entry.index.load(Ordering::Relaxed) == index));
            let mut counts: Vec<_> = table.addresses.iter().map(|(key, a)| (a.open.len(), *key)).collect();
            counts.sort_unstable();
            prop_assert_eq!(counts, table.by_number.iter().copied().collect::<Vec<_>>());
        }
    }
}
