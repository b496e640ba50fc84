package report

import (
	"cmp"
	"math"
	"slices"
)

// growth is how much wider each bucket of a Series is than the one before: a percentile is
// at most a hundredth off.
const growth = 1.02

// Series is what is kept of the samples of one quantity: enough for its maximum, mean and
// percentiles, in a size that does not grow with time, and such that two can be put
// together without loss. Values are not negative.
type Series struct {
	Samples int     `json:"samples"`
	Max     float64 `json:"max"`
	Sum     float64 `json:"sum"`
	// Buckets count the samples by size, in rising order; bucket b has those over
	// growth^(b-1) and up to growth^b. Samples of zero are in none.
	Buckets []Bucket `json:"buckets,omitempty"`
}

// Bucket is a class of sizes, and how many samples are in it.
type Bucket struct {
	Index int `json:"b"`
	Count int `json:"n"`
}

// Add adds a sample. What is no number, or is negative, is left out.
func (s *Series) Add(v float64) {
	if math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
		return
	}
	s.Samples++
	s.Sum += v
	s.Max = max(s.Max, v)
	if v > 0 {
		s.count(Bucket{Index: int(math.Ceil(math.Log(v) / math.Log(growth))), Count: 1})
	}
}

// Merge adds another's samples.
func (s *Series) Merge(o Series) {
	s.Samples += o.Samples
	s.Sum += o.Sum
	s.Max = max(s.Max, o.Max)
	for _, b := range o.Buckets {
		s.count(b)
	}
}

func (s *Series) count(b Bucket) {
	i, there := slices.BinarySearchFunc(s.Buckets, b, func(a, b Bucket) int { return cmp.Compare(a.Index, b.Index) })
	if there {
		s.Buckets[i].Count += b.Count
		return
	}
	s.Buckets = slices.Insert(s.Buckets, i, b)
}

// Seen tells whether there is any sample.
func (s Series) Seen() bool { return s.Samples > 0 }

// Mean returns the samples' mean, 0 where there is none.
func (s Series) Mean() float64 {
	if s.Samples == 0 {
		return 0
	}
	return s.Sum / float64(s.Samples)
}

// Quantile returns the value that the share q of the samples, 0 to 1, does not exceed: never
// less than it really is, and at most two hundredths more. It is 0 where there is no sample.
func (s Series) Quantile(q float64) float64 {
	over := s.Samples - int(math.Ceil(min(max(q, 0), 1)*float64(s.Samples))) // may lie above the answer
	for _, b := range slices.Backward(s.Buckets) {
		if over < b.Count {
			return min(s.Max, math.Pow(growth, float64(b.Index)))
		}
		over -= b.Count
	}
	return 0
}
