"""From a hospital's own systems to a manifest: films from DICOM, reports from FHIR, under ids that only the site's key can make."""
