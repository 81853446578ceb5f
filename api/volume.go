package api

import (
	"time"

	"github.com/invarhq/invar/digest"
)

// Volumes are the volumes of an environment.
type Volumes struct {
	Env     string   `json:"env" doc:"Environment."`
	Volumes []Volume `json:"volumes" doc:"Sorted by component and name."`
}

// Volume is a volume with all that is kept of it.
type Volume struct {
	Component string       `json:"component" example:"db" doc:"Component."`
	Name      string       `json:"name" example:"data" doc:"Name of the volume."`
	Current   int          `json:"current" doc:"Version that instances get; 0: none did yet."`
	Versions  []VolumeKept `json:"versions" doc:"Versions, by number."`
	Snapshots []VolumeKept `json:"snapshots" doc:"Snapshots that are complete, by number."`
}

// VolumeKept is a version or a snapshot of a volume.
type VolumeKept struct {
	Number     int           `json:"number" doc:"Its number. None is given twice."`
	Of         int           `json:"of,omitempty" doc:"Of a snapshot: the version that it has the data of."`
	From       string        `json:"from,omitempty" example:"snapshot 1" doc:"Of a version: what it was made from; absent: it began empty."`
	Generation int           `json:"generation,omitempty" doc:"Generation that was the last to leave it so; absent: it is in use, or never was."`
	At         *time.Time    `json:"at,omitempty" doc:"Since when it is so; of the current version, since when it is that."`
	Bytes      int64         `json:"bytes" doc:"Bytes of its files when it was copied; 0 for a version that began empty."`
	Files      int           `json:"files" doc:"Files, directories, links and FIFOs, likewise."`
	Digest     digest.Digest `json:"digest,omitempty" doc:"Digest of all of it, likewise."`
	Changed    int           `json:"changed,omitempty" doc:"Of a copy of data in use: entries that still changed when it ended. Where it is absent, the copy is of one moment."`
}

// VolumeCopy is a copy of a volume that is under way.
type VolumeCopy struct {
	Component string `json:"component" doc:"Component."`
	Volume    string `json:"volume" doc:"Volume."`
	To        string `json:"to" example:"snapshot 2" doc:"What is being made."`
	Done      int64  `json:"done" doc:"Bytes that are done."`
	Total     int64  `json:"total" doc:"Of so many; 0: not known yet."`
}

// VolumeDeleteRequest asks for the deletion of a version or a snapshot of a volume.
type VolumeDeleteRequest struct {
	Component string `json:"component" minLength:"1" doc:"Component."`
	Volume    string `json:"volume" minLength:"1" doc:"Volume."`
	Version   int    `json:"version,omitempty" minimum:"0" doc:"Version, never the current one. Either this or a snapshot."`
	Snapshot  int    `json:"snapshot,omitempty" minimum:"0" doc:"Snapshot. Either this or a version."`
	Reason    string `json:"reason,omitempty" maxLength:"4096" doc:"Why; recorded in the ledger."`
}
