use std::io;

use super::*;

/// Puts `bytes` into the buffer as a socket would.
fn receive(buffer: &mut ReadBuffer, need: usize, bytes: &[u8]) {
    let count = buffer.fill(need, |room| {
        let count = room.len().min(bytes.len());
        room[..count].copy_from_slice(&bytes[..count]);
        Ok(count)
    });
    assert_eq!(count.expect("fill"), bytes.len());
}

#[test]
fn payloads_keep_their_bytes_while_the_connection_reads_on() {
    let arena = Arena::default();
    let mut buffer = ReadBuffer::new(arena.clone());
    let mut kept = Vec::new();
    for round in 0..40u8 {
        receive(&mut buffer, 100_000, &vec![round; 100_000]);
        kept.push(buffer.take_payload(100_000));
    }
    for (round, payload) in kept.iter().enumerate() {
        assert!(payload.iter().all(|byte| *byte == round as u8), "payload {round} has changed");
    }
    assert!(arena.stats().live_chunks >= 4, "{:?}", arena.stats());
    drop(kept);
    drop(buffer);
    assert_eq!(arena.stats().live_chunks, 0);
    assert_eq!(arena.stats().chunk_bytes, 0);
}

#[test]
fn a_chunk_without_payloads_is_used_from_its_start_again() {
    let arena = Arena::default();
    let mut buffer = ReadBuffer::new(arena.clone());
    let mut starts = Vec::new();
    for round in 0..40u8 {
        receive(&mut buffer, 28, &vec![round; 100_000]);
        starts.push(buffer.unparsed().as_ptr());
        drop(buffer.take_payload(100_000));
    }
    assert!(starts.windows(2).all(|pair| pair[0] == pair[1]), "the buffer moved though nobody used it");
    assert_eq!(arena.stats(), ArenaStats { live_chunks: 1, chunk_bytes: CHUNK_BYTES, free_bytes: 0 });
}

#[test]
fn a_partial_request_moves_to_a_new_chunk_unharmed() {
    let mut buffer = ReadBuffer::new(Arena::default());
    receive(&mut buffer, 28, &vec![1; CHUNK_BYTES - 10]);
    let first = buffer.take_payload(CHUNK_BYTES - 20);
    receive(&mut buffer, 200_000, &vec![2; 199_990]);
    let second = buffer.take_payload(200_000);
    assert!(second[..10].iter().all(|byte| *byte == 1) && second[10..].iter().all(|byte| *byte == 2));
    assert!(first.iter().all(|byte| *byte == 1));
}

#[test]
fn a_partial_request_moves_to_the_front_of_a_chunk_that_is_free() {
    let mut buffer = ReadBuffer::new(Arena::default());
    receive(&mut buffer, 28, &[vec![1; CHUNK_BYTES - 100], vec![2; 100]].concat());
    drop(buffer.take_payload(CHUNK_BYTES - 100));
    receive(&mut buffer, 1000, &[3; 900]);
    assert_eq!(&*buffer.take_payload(1000), [vec![2; 100], vec![3; 900]].concat());
}

#[test]
fn a_large_payload_has_its_own_memory() {
    let arena = Arena::default();
    let mut buffer = ReadBuffer::new(arena.clone());
    receive(&mut buffer, 28, &[7; 5000]);
    let large = buffer.take_large(3 << 20, |rest| {
        rest.fill(8);
        Ok(())
    });
    let large = large.expect("payload");
    assert_eq!(large.len(), 3 << 20);
    assert!(large[..5000].iter().all(|byte| *byte == 7) && large[5000..].iter().all(|byte| *byte == 8));
    assert!(buffer.unparsed().is_empty());
    assert_eq!(arena.stats().chunk_bytes, CHUNK_BYTES + (3 << 20));
}

#[test]
fn a_large_payload_that_ends_early_gives_its_memory_back() {
    let arena = Arena::default();
    let mut buffer = ReadBuffer::new(arena.clone());
    let result = buffer.take_large(2 << 20, |_| Err(io::ErrorKind::UnexpectedEof.into()));
    assert_eq!(result.map(drop).map_err(|error| error.kind()), Err(io::ErrorKind::UnexpectedEof));
    assert_eq!(arena.stats().live_chunks, 1);
}

#[test]
fn memory_is_used_again_and_bounded() {
    let arena = Arena::new(3 << 20);
    let first = arena.chunk(CHUNK_BYTES);
    let address = first.start();
    drop(first);
    assert_eq!(arena.stats(), ArenaStats { live_chunks: 0, chunk_bytes: 0, free_bytes: CHUNK_BYTES });
    let again = arena.chunk(CHUNK_BYTES);
    assert_eq!(again.start(), address, "free memory was not used");
    let many: Vec<_> = (0..5).map(|_| arena.chunk(CHUNK_BYTES)).collect();
    drop((again, many));
    assert_eq!(arena.stats(), ArenaStats { live_chunks: 0, chunk_bytes: 0, free_bytes: 3 << 20 });
    drop(arena.chunk(2 << 20));
    assert!(arena.stats().free_bytes <= 3 << 20);
    drop(arena.chunk(4 << 20));
    assert!(arena.stats().free_bytes <= 3 << 20, "a chunk above the limit is not kept");
}

#[test]
fn the_last_payload_may_be_dropped_by_another_thread() {
    let arena = Arena::default();
    let mut buffer = ReadBuffer::new(arena.clone());
    std::thread::scope(|scope| {
        for round in 0..20u8 {
            receive(&mut buffer, 70_000, &[round; 70_000]);
            let payload = buffer.take_payload(70_000);
            scope.spawn(move || assert!(payload.iter().all(|byte| *byte == round)));
        }
    });
    drop(buffer);
    assert_eq!(arena.stats().live_chunks, 0);
}

#[test]
fn payloads_outlive_their_arena() {
    let mut buffer = ReadBuffer::new(Arena::default());
    receive(&mut buffer, 28, &[9; 100]);
    let payload = buffer.take_payload(100);
    drop(buffer);
    assert_eq!(&*payload, [9; 100]);
}

#[test]
fn a_vector_becomes_a_payload_and_can_be_cut() {
    let payload = Payload::from_vec((0..100).collect());
    let part = payload.slice(10..20);
    drop(payload);
    assert_eq!(&*part, (10..20).collect::<Vec<u8>>());
    assert_eq!(&*part.slice(9..10), [19]);
    assert!(part.slice(10..10).is_empty());
    assert!(Payload::from_vec(Vec::new()).is_empty());
}

#[test]
#[should_panic(expected = "is not within")]
fn a_payload_cannot_be_cut_beyond_its_end() {
    drop(Payload::from_vec(vec![0; 10]).slice(5..11));
}
