//! Main steps of a job, in the log of every site that it comes to.

use super::{World, sleep, tower};

#[test]
fn every_site_names_the_job_of_the_top_and_its_trace() {
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let mut w = World::new();
    let sites = tower(&mut w, 2);
    let mut spec = sleep(50);
    spec.trace_parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let (job, _) = w.submit(sites[0], "k", spec.clone(), 6).unwrap();
    w.pass(10_000);
    let id = intergrid_proto::JobNo(job).id();
    for site in &sites {
        let said: Vec<&str> = w.steps.iter().filter(|(s, _)| s == site).map(|(_, l)| l.what.as_str()).collect();
        assert_eq!(("accepted, of 6 tasks", "ended here: done 6"), (said[0], *said.last().unwrap()), "{said:?}");
        assert!(said.iter().any(|s| s.starts_with("placed ")), "{said:?}");
    }
    assert!(w.steps.iter().all(|(_, l)| (l.trace.as_str(), l.principal.as_str(), &l.origin) == (trace, "user", &id)), "{:?}", w.steps);
    // Another try of the same submission may be of another trace; another job may not.
    spec.trace_parent = format!("00-{trace}-1111111111111111-00");
    assert_eq!(Ok((job, true)), w.submit(sites[0], "k", spec.clone(), 6));
    spec.trace_parent = String::new();
    assert_eq!(Ok((job, true)), w.submit(sites[0], "k", spec.clone(), 6));
    spec.name = "other".into();
    assert!(w.submit(sites[0], "k", spec, 6).is_err());
}
