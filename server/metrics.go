package server

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/ledger/witness/collect"
	"github.com/invarhq/invar/state"
)

// collector reads the newest state when it is asked: there is nothing to keep in step.
type collector struct {
	now       func() state.State
	witnesses func() collect.Status
}

var (
	ledgerEntries = prometheus.NewDesc("invar_ledger_entries", "Entries of the ledger.", nil, nil)
	witnessAlarms = prometheus.NewDesc("invar_ledger_witness_alarms_total", "Inconsistencies between the ledger and what its witnesses have seen, since the server started.", nil, nil)
	witnessed     = prometheus.NewDesc("invar_ledger_witnessed_entries", "Entries up to which a quorum of witnesses has cosigned.", nil, nil)
	hostDrift     = prometheus.NewDesc("invar_host_drift_open", "What is not as it should be on the machine beside the instances, and is not over.", nil, nil)
	generation    = prometheus.NewDesc("invar_environment_generation", "Generation of the environment's head.", []string{"environment"}, nil)
	rolling       = prometheus.NewDesc("invar_environment_state", "1 for the state that the head's rollout is in.", []string{"environment", "state"}, nil)
	tainted       = prometheus.NewDesc("invar_instances_tainted", "Instances that somebody was in, and that are to be replaced.", []string{"environment"}, nil)
	unmeasured    = prometheus.NewDesc("invar_environment_verified_age_seconds", "Since when not all of what the environment runs was measured.", []string{"environment"}, nil)
	measured      = prometheus.NewDesc("invar_environment_verified", "1 for what the newest measurement of what the environment runs found.", []string{"environment", "result"}, nil)
	instances     = prometheus.NewDesc("invar_environment_instances", "Instances by what the ledger says of their health.", []string{"environment", "health"}, nil)
)

func (c collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

func (c collector) Collect(ch chan<- prometheus.Metric) {
	now := c.now()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(ledgerEntries, float64(now.Size()))
	gauge(hostDrift, float64(len(now.Host().Open)))
	w := c.witnesses()
	gauge(witnessed, float64(w.UpTo))
	ch <- prometheus.MustNewConstMetric(witnessAlarms, prometheus.CounterValue, float64(w.Raised))
	for env := range now.Environments() {
		gauge(generation, float64(env.Head.Number), string(env.Name))
		gauge(rolling, 1, string(env.Name), string(env.Head.Outcome))
		c.verified(gauge, env)
		counts := map[instance.Health]int{instance.Passing: 0, instance.Failing: 0, instance.Unknown: 0}
		for _, i := range env.Instances {
			if i.Live() {
				counts[i.Health]++
			}
		}
		gauge(tainted, float64(env.TaintedInstances()), string(env.Name))
		for health, n := range counts {
			label := string(health)
			if health == instance.Unknown {
				label = "unknown"
			}
			gauge(instances, float64(n), string(env.Name), label)
		}
	}
}

// verified tells how long ago what runs was measured, and with which result.
func (c collector) verified(gauge func(*prometheus.Desc, float64, ...string), env state.Environment) {
	since, runs := env.Unmeasured()
	if !runs {
		return
	}
	gauge(unmeasured, time.Since(since).Seconds(), string(env.Name))
	if env.Measured != nil {
		gauge(measured, 1, string(env.Name), env.Measured.Result)
	}
}

// newRegistry has the server's metrics and those of its process.
func newRegistry(now func() state.State, witnesses func() collect.Status) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collector{now, witnesses}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}
