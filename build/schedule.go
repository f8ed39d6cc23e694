package build

import (
	"context"
	"slices"
)

// Task is a piece of a command's work: a build, or what follows from some.
type Task struct {
	Seconds float64 // that it is expected to take on one processor
	After   []int   // tasks that end before it begins, whatever becomes of them
	Run     func()
}

// Schedule runs tasks and returns when all have ended. Each takes a token of s, and
// of those that can begin, the one first that the longest chain of work begins with: so
// nothing long is left for the end. When ctx ends no more are begun; the error is then its
// cause.
func (s *Jobserver) Schedule(ctx context.Context, tasks []Task) error {
	plan := newSchedule(tasks)
	ended := make(chan int, len(tasks))
	running := 0
	for {
		for len(ended) > 0 {
			plan.end(<-ended)
			running--
		}
		if plan.idle() {
			if running == 0 {
				return nil
			}
			plan.end(<-ended)
			running--
			continue
		}
		if err := s.acquire(ctx); err != nil {
			for ; running > 0; running-- {
				<-ended
			}
			return err
		}
		for len(ended) > 0 { // since we began to wait
			plan.end(<-ended)
			running--
		}
		i := plan.next()
		running++
		go func() {
			tasks[i].Run()
			s.release()
			ended <- i
		}()
	}
}

// schedule is which tasks wait for which, and which can begin.
type schedule struct {
	waits   []int     // for so many others
	unlocks [][]int   // the tasks that wait for this one
	chain   []float64 // seconds from its beginning to the end of all that follows
	ready   []int
}

func newSchedule(tasks []Task) *schedule {
	p := &schedule{waits: make([]int, len(tasks)), unlocks: make([][]int, len(tasks)), chain: make([]float64, len(tasks))}
	for i, t := range tasks {
		p.waits[i] = len(t.After)
		for _, before := range t.After {
			p.unlocks[before] = append(p.unlocks[before], i)
		}
		if len(t.After) == 0 {
			p.ready = append(p.ready, i)
		}
	}
	known := make([]bool, len(tasks))
	var measure func(i int) float64
	measure = func(i int) float64 {
		if !known[i] {
			known[i] = true
			for _, next := range p.unlocks[i] {
				p.chain[i] = max(p.chain[i], measure(next))
			}
			p.chain[i] += tasks[i].Seconds
		}
		return p.chain[i]
	}
	for i := range tasks {
		measure(i)
	}
	return p
}

func (p *schedule) idle() bool { return len(p.ready) == 0 }

// next takes the task to begin; the earlier one of two equals.
func (p *schedule) next() int {
	best := 0
	for n, i := range p.ready {
		if p.chain[i] > p.chain[p.ready[best]] {
			best = n
		}
	}
	i := p.ready[best]
	p.ready = slices.Delete(p.ready, best, best+1)
	return i
}

func (p *schedule) end(i int) {
	for _, next := range p.unlocks[i] {
		if p.waits[next]--; p.waits[next] == 0 {
			p.ready = append(p.ready, next)
		}
	}
}
