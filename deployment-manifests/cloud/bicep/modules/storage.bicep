// The lake: an account with a hierarchical namespace (ADLS Gen2) and one container. Keys are switched off; who has no role has no access.

@description('Where it is.')
param location string

@description('Name of the account.')
@minLength(3)
@maxLength(24)
param accountName string

@description('Name of the container.')
param containerName string

@description('Redundancy.')
param skuName string

@description('Subnets that may reach it. Empty: every network.')
param allowedSubnetIds array

@description('Principal that writes the tables.')
param writerPrincipalId string

@description('Principal that reads them.')
param readerPrincipalId string

// Built-in roles Storage Blob Data Contributor and Storage Blob Data Reader.
var blobDataContributor = 'ba92f5b4-2d11-453d-a403-e96b0029c9fe'
var blobDataReader = '2a2b9908-6ea1-4ae2-8e65-a410df84e7d1'

resource account 'Microsoft.Storage/storageAccounts@2023-05-01' = {
  name: accountName
  location: location
  kind: 'StorageV2'
  sku: {
    name: skuName
  }
  properties: {
    isHnsEnabled: true
    accessTier: 'Hot'
    allowSharedKeyAccess: false
    defaultToOAuthAuthentication: true
    allowBlobPublicAccess: false
    allowCrossTenantReplication: false
    minimumTlsVersion: 'TLS1_2'
    supportsHttpsTrafficOnly: true
    networkAcls: {
      bypass: 'None'
      defaultAction: empty(allowedSubnetIds) ? 'Allow' : 'Deny'
      virtualNetworkRules: [for subnet in allowedSubnetIds: { id: subnet }]
    }
  }
}

resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2023-05-01' = {
  parent: account
  name: 'default'
  properties: {
    // The tables delete their own old files after `maintenance.vacuum-retention`; kept for a week more they would cost twice.
    deleteRetentionPolicy: {
      enabled: false
    }
  }
}

resource lake 'Microsoft.Storage/storageAccounts/blobServices/containers@2023-05-01' = {
  parent: blobs
  name: containerName
  properties: {
    publicAccess: 'None'
  }
}

resource mayWrite 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(lake.id, writerPrincipalId, blobDataContributor)
  scope: lake
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', blobDataContributor)
    principalId: writerPrincipalId
    principalType: 'ServicePrincipal'
  }
}

resource mayRead 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(lake.id, readerPrincipalId, blobDataReader)
  scope: lake
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', blobDataReader)
    principalId: readerPrincipalId
    principalType: 'ServicePrincipal'
  }
}

@description('The account.')
output accountName string = account.name

@description('`lake.location` of the settings, without a folder.')
output location string = 'abfss://${containerName}@${accountName}.dfs.${environment().suffixes.storage}/'
