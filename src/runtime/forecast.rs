//! When lanes that share the workers by turns will be done, and whether there is time for one more.

/// What one lane still wants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Claim {
    /// Cost that it is expected to take yet.
    pub(super) work: f64,
    /// Seconds until its deadline.
    pub(super) left: f64,
}

/// Lanes side by side, at one rate.
#[derive(Debug)]
pub(super) struct Forecast {
    /// Cost served a second.
    rate: f64,
    /// Cost that holds nobody up: the queue's grain.
    grain: f64,
    /// Those who are inside, by their work.
    claims: Vec<Claim>,
}

/// Rates change: a newcomer must leave a part of everybody's time unplanned.
const PLANNED: f64 = 0.8;

/// Nobody is told to wait longer, in seconds.
const LONGEST_WAIT: u64 = 60;

impl Forecast {
    pub(super) fn new(rate: f64, grain: f64, mut claims: Vec<Claim>) -> Self {
        claims.retain(|it| it.work > 0.0);
        claims.sort_by(|a, b| a.work.total_cmp(&b.work));
        Self { rate, grain, claims }
    }

    /// Whether a newcomer would be done in time, and nobody late because of it. Who is alone is always tried.
    ///
    /// The queue serves whoever was served least. When a lane with work `w` ends, every other has therefore had
    /// `min(its work, w)`: a small request is soon done beside a large one, and equal ones end together. A
    /// newcomer below the grain is not weighed against the others, for it holds them up by less than a chunk. One
    /// that would be late even alone is not refused for that: the others are not the reason, its work may be a
    /// bound, and it may want what stands at its deadline.
    pub(super) fn has_room(&self, newcomer: Claim) -> bool {
        let Claim { work, left } = newcomer;
        let before: f64 = self.claims.iter().map(|it| it.work.min(work)).sum();
        let in_time = (before + work) / self.rate <= PLANNED * left || work / self.rate > left;
        self.claims.is_empty() || in_time && (work <= self.grain || self.can_share(work))
    }

    /// Whether everybody inside ends in time beside another `work`. Who is late anyway has no say.
    fn can_share(&self, work: f64) -> bool {
        let mut ended = 0.0;
        self.claims.iter().enumerate().all(|(index, it)| {
            let before = ended + it.work * (self.claims.len() - index) as f64;
            ended += it.work;
            let end = (before + work.min(it.work)) / self.rate;
            before / self.rate > it.left || end <= PLANNED * it.left
        })
    }

    /// Whole seconds after which there is room, if nobody else comes.
    pub(super) fn room_in(&self, newcomer: Claim) -> u64 {
        let (mut early, mut late) = (1, LONGEST_WAIT);
        while early < late {
            let middle = (early + late) / 2;
            match self.after(middle as f64).has_room(newcomer) {
                true => late = middle,
                false => early = middle + 1,
            }
        }
        late
    }

    /// What is left some seconds later: everybody has been served equally, or has ended.
    fn after(&self, seconds: f64) -> Self {
        let (mut capacity, mut served) = (seconds * self.rate, 0.0);
        for (index, it) in self.claims.iter().enumerate() {
            let share = capacity / (self.claims.len() - index) as f64;
            if share < it.work - served {
                served += share;
                break;
            }
            capacity -= (it.work - served) * (self.claims.len() - index) as f64;
            served = it.work;
        }
        let rest = |it: &Claim| Claim { work: it.work - served, left: it.left - seconds };
        let claims = self.claims.iter().map(rest).filter(|it| it.work > 0.0 && it.left > 0.0).collect();
        Self { claims, ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(work: f64, left: f64) -> Claim {
        Claim { work, left }
    }

    /// Lanes at 100 a second, with a grain of 10.
    fn inside(claims: &[Claim]) -> Forecast {
        Forecast::new(100.0, 10.0, claims.to_vec())
    }

    #[test]
    fn equal_requests_are_let_in_while_all_of_them_end_in_time() {
        let mut claims = Vec::new();
        while inside(&claims).has_room(claim(100.0, 10.0)) {
            claims.push(claim(100.0, 10.0));
        }
        assert_eq!(claims.len(), 8, "8 seconds of work for 10 seconds of time");
    }

    #[test]
    fn a_small_request_shares_with_a_large_one_and_does_not_wait_for_it() {
        let large = [claim(500.0, 60.0)];
        assert!(inside(&large).has_room(claim(20.0, 0.6)), "done after 0.4 s, not after 5.2 s");
        assert!(!inside(&large).has_room(claim(20.0, 0.4)));
    }

    #[test]
    fn nobody_is_made_late_but_by_less_than_a_chunk() {
        let close = [claim(790.0, 10.0)];
        assert!(!inside(&close).has_room(claim(20.0, 10.0)), "8.1 s of the 8.0 s that are planned");
        assert!(inside(&close).has_room(claim(10.0, 10.0)));
        let late = [claim(1001.0, 10.0)];
        assert!(inside(&late).has_room(claim(20.0, 10.0)), "who is late anyway has no say");
    }

    #[test]
    fn who_is_alone_is_tried_whatever_it_costs() {
        assert!(inside(&[]).has_room(claim(95.0, 1.0)));
        assert!(!inside(&[claim(50.0, 9.0)]).has_room(claim(95.0, 1.0)));
    }

    #[test]
    fn who_would_be_late_even_alone_is_refused_for_the_sake_of_others_only() {
        let newcomer = claim(1e9, 1.0);
        assert!(inside(&[claim(300.0, 10.0)]).has_room(newcomer));
        assert!(!inside(&[claim(500.0, 10.0)]).has_room(newcomer), "they would need 10 s of 10 s");
    }

    #[test]
    fn the_wait_is_the_shortest_after_which_there_is_room() {
        let full = [claim(100.0, 10.0); 8];
        let newcomer = claim(100.0, 10.0);
        let wait = inside(&full).room_in(newcomer);
        assert!(inside(&full).after(wait as f64).has_room(newcomer));
        assert!(!inside(&full).after(wait as f64 - 1.0).has_room(newcomer));
        let endless = [claim(1e9, 3.0)];
        assert_eq!(inside(&endless).room_in(claim(490.0, 5.0)), 3, "the deadline ends it");
    }

    #[test]
    fn time_serves_everybody_alike() {
        let later = inside(&[claim(300.0, 9.0), claim(50.0, 9.0), claim(100.0, 9.0)]).after(2.0);
        assert_eq!(later.claims, [claim(25.0, 7.0), claim(225.0, 7.0)]);
    }
}
