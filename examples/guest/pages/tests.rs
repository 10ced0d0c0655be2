use super::*;

/// Returns all pages as they are after the given records, in that order.
fn file(records: impl Iterator<Item = u64>) -> Vec<Vec<u8>> {
    let mut pages = vec![vec![0; PAGE_BYTES]; PAGES as usize];
    for record in records {
        pages_of(record).for_each(|page| pages[page as usize] = encode(page, record));
    }
    pages
}

fn bad(pages: &[Vec<u8>], records: u64) -> usize {
    let expectation = Expectation::after(records);
    let judge = |(page, bytes): (u64, &Vec<u8>)| expectation.allows(page, stamp(page, bytes));
    (0..PAGES).zip(pages).filter(|pair| !judge(*pair)).count()
}

#[test]
fn pages_as_the_records_left_them_are_good() {
    assert_eq!(bad(&file(1..=900), 900), 0);
}

#[test]
fn pages_of_the_record_under_way_are_good() {
    assert_eq!(bad(&file(1..=901), 900), 0);
}

#[test]
fn pages_of_a_record_that_should_not_be_there_are_bad() {
    assert!(bad(&file(1..=902), 900) > 0);
}

#[test]
fn a_page_write_that_is_missing_before_its_record_is_bad() {
    assert!(bad(&file((1..=900).filter(|record| *record != 899)), 900) > 0);
}

#[test]
fn a_torn_page_and_a_swapped_page_are_bad() {
    let mut pages = file(1..=900);
    let page = pages_of(900).next().expect("a record has pages") as usize;
    pages[page][PAGE_BYTES / 2..].fill(0);
    assert_eq!(bad(&pages, 900), 1);

    let mut pages = file(1..=900);
    let other = pages_of(899).next().expect("a record has pages") as usize;
    pages.swap(page, other);
    assert_eq!(bad(&pages, 900), 2);
}
