use super::*;

fn hash(name: u8) -> Hash {
    if name == 0 { Hash::ZERO } else { Hash([name; 32]) }
}

/// Each segment is (sequence, itself, its parent, generation).
fn check(segments: &[(u64, u8, u8, u64)], expect: &[u8]) {
    let mut nodes = Nodes::new();
    for &(sequence, this, parent, generation) in segments {
        let node = Node {
            hash: hash(this),
            parent: hash(parent),
            generation: Generation(generation),
            size_bytes: 1,
        };
        nodes.entry(Sequence(sequence)).or_default().push(node);
    }
    let chain = longest(&nodes);
    assert_eq!(chain.iter().map(|(_, node)| node.hash.0[0]).collect::<Vec<_>>(), expect);
    let sequences = chain.iter().map(|(sequence, _)| sequence.0);
    assert!(sequences.eq(1..=expect.len() as u64));
}

#[test]
fn the_longest_chain_is_taken() {
    check(&[], &[]);
    check(&[(2, 2, 1, 1)], &[]);
    check(&[(1, 1, 0, 1), (2, 2, 1, 1), (4, 4, 3, 1)], &[1, 2]);
    // A fork: the longer branch, whatever its generation.
    check(&[(1, 1, 0, 1), (2, 2, 1, 1), (2, 9, 1, 2), (3, 3, 2, 1)], &[1, 2, 3]);
    // As long as each other: the newer writer's.
    check(&[(1, 1, 0, 1), (2, 2, 1, 1), (2, 9, 1, 2)], &[1, 9]);
    check(&[(1, 1, 0, 1), (2, 9, 1, 2), (2, 2, 1, 1)], &[1, 9]);
    // A lower generation continues nothing.
    check(&[(1, 1, 0, 2), (2, 2, 1, 1)], &[1]);
}
