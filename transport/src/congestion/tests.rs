use super::*;

const ACKS: AckPattern = AckPattern { threshold: 20, delay_max: Duration::from_millis(10) };

#[test]
fn a_connection_remembers_nothing_before_its_first_measurement() {
    let memory = Arc::new(PathMemory::default());
    let control = Arc::new(RateControl { memory: Some(memory.clone()), acks: ACKS });
    let controller = control.build(Instant::now(), 1200);
    assert_eq!(controller.window(), (INITIAL_PACKETS + 2) * 1200);
    assert_eq!((memory.rate(), memory.min_rtt()), (None, None));
}

#[test]
fn a_connection_begins_at_the_rate_that_is_remembered() {
    let memory = Arc::new(PathMemory::with_rate(Some(10_000_000)));
    let control = Arc::new(RateControl { memory: Some(memory), acks: ACKS });
    let mut model = Model::new(38_400, 1200, Some(10_000_000.0), ACKS);
    let begun = Instant::now();
    model.handle_sent(begun, 1200);
    let later = begun + Duration::from_millis(100);
    model.handle_ack(later, begun, 1200, true);
    model.handle_acks_end(later, 0, true);
    // 9 MB/s for 110 ms and a little.
    assert!((990_000..1_200_000).contains(&model.window()), "{}", model.window());
    assert_eq!(control.build(begun, 1200).initial_window(), 38_400);
}
