package report

import "fmt"

// Identity is what tells a disk from all others, as far as it says: its WWN, else its model
// and serial number, else only its name and size. It is not empty.
func (d Disk) Identity() string {
	switch {
	case d.WWN != "":
		return "wwn:" + d.WWN
	case d.Serial != "":
		return fmt.Sprintf("serial:%s:%s", d.Model, d.Serial)
	}
	return fmt.Sprintf("name:%s:%d", d.Name, d.SizeBytes)
}
