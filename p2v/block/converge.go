package block

import "time"

// A Forecast says what passes like those of the past lead to.
type Forecast struct {
	// Final is how long a pass takes that begins right after the last one, with
	// the source at rest: the part of the downtime that copying is.
	Final time.Duration
	// Settled is what Final comes to after many more passes, back to back; less
	// is not to be had while the source goes on as it does. It is negative when
	// passes get longer and longer.
	Settled time.Duration
	// Fits says that Final is within the budget: time to cut over.
	Fits bool
	// Converges says that more passes come within the budget, or stay there. If
	// neither holds, somebody must decide: wait, allow more, or stop the load.
	Converges bool
}

// Project tells how long the last pass will take, from the passes so far,
// oldest first and all of the same chunks, against a budget for it. It needs
// one pass at least, and two to know how fast the source changes; before that
// everything counts as changing. The forecast is no promise: a source that
// writes more tomorrow takes longer tomorrow.
//
// A pass takes as long as reading the disk, which is the same each time, and
// moving what changed. What changes is what the last pass found, by the time
// since the pass before it began.
func Project(passes []Pass, budget time.Duration) Forecast {
	if len(passes) == 0 {
		return Forecast{Final: -1, Settled: -1}
	}
	c := costsOf(passes)
	last := passes[len(passes)-1]
	f := Forecast{Final: seconds(c.pass(float64(last.Written))), Settled: -1}
	if len(passes) > 1 {
		before := passes[len(passes)-2]
		between := last.Started.Sub(before.Started).Seconds()
		if between > 0 {
			dirty := float64(last.Written) / between // bytes a second
			f.Final = seconds(c.pass(min(dirty*last.Duration.Seconds(), float64(last.Bytes))))
			// A pass of t seconds leaves dirty*t bytes to the next, which takes
			// scan + dirty*t*perByte.
			if grow := dirty * c.perByte; grow < 1 {
				f.Settled = seconds(c.scan / (1 - grow))
			}
		}
	}
	f.Fits = f.Final <= budget
	f.Converges = f.Settled >= 0 && f.Settled <= budget
	return f
}

// costs are seconds for reading the disk, and for each byte that changed.
type costs struct {
	scan, perByte float64
	most          Pass // of which most had changed
}

// pass is how long a pass takes that moves so many bytes: not longer than one
// that moved more.
func (c costs) pass(changed float64) float64 {
	took := c.scan + changed*c.perByte
	if changed <= float64(c.most.Written) {
		took = min(took, c.most.Duration.Seconds())
	}
	return took
}

// costsOf splits what passes took. Of passes that changed about as much nothing
// can be told apart; then all of the shortest is reading, and all of the longest
// moving: too much of both, so that a forecast errs towards more passes.
func costsOf(passes []Pass) costs {
	least, most := passes[0], passes[0]
	for _, p := range passes {
		if p.Written < least.Written {
			least = p
		}
		if p.Written >= most.Written {
			most = p
		}
	}
	a, b := least.Duration.Seconds(), most.Duration.Seconds()
	if more := float64(most.Written - least.Written); more > float64(most.Written)/4 && b > a {
		perByte := (b - a) / more
		return costs{scan: max(0, a-float64(least.Written)*perByte), perByte: perByte, most: most}
	}
	c := costs{scan: a, most: most}
	if most.Written > 0 {
		c.perByte = b / float64(most.Written)
	}
	return c
}

// seconds is a duration, at most a year.
func seconds(s float64) time.Duration {
	return time.Duration(min(s, (365*24*time.Hour).Seconds()) * float64(time.Second))
}
